# Of a folder that a wildcard matches the contents are copied.
# expect: file /a/one.txt
# expect: absent /a/folder
FROM scratch
COPY fold* /a/
