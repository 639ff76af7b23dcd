# Of a folder the contents are copied, not the folder itself; empty folders too.
# expect: file /a/one.txt "one\n"
# expect: file /a/sub/deep.txt "deep\n"
# expect: folder /a/empty
# expect: absent /a/folder
FROM scratch
COPY folder /a
