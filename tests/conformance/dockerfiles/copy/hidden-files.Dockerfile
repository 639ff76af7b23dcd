# A folder's hidden files are copied as all others; a * matches them too.
# expect: file /a/.hidden "hidden\n"
# expect: mode /a/.hidden 0600
FROM scratch
COPY .h* /a/
