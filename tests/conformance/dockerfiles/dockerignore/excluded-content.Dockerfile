# A folder is a valid source even if all of its content is excluded.
# expect: folder /a
# expect: absent /a/a1.txt
FROM scratch
COPY glob /a/
