# With --parents ** stands for any number of folders.
# expect: file /x/folder/sub/deep.txt
# expect: file /x/folder/one.txt
# expect: file /x/plain.txt
# expect: absent /x/script.sh
FROM scratch
COPY --parents **/*.txt /x/
