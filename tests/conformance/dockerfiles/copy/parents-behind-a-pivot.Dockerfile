# With --parents only what is behind /./ is kept.
# expect: file /x/sub/deep.txt
# expect: absent /x/folder
FROM scratch
COPY --parents folder/./sub/deep.txt /x/
