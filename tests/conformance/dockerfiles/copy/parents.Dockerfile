# With --parents the folders of a source's path are kept.
# expect: file /x/folder/sub/deep.txt "deep\n"
# expect: mode /x/folder/sub 0750
# expect: absent /x/deep.txt
FROM scratch
COPY --parents folder/sub/deep.txt /x/
