# A destination with a slash at its end is a folder that the file goes into.
# expect: file /a/plain.txt "plain\n"
FROM scratch
COPY plain.txt /a/
