# With --parents a folder is copied itself, below its own path.
# expect: file /x/folder/sub/deeper/x "x\n"
# expect: absent /x/folder/one.txt
FROM scratch
COPY --parents folder/sub /x/
