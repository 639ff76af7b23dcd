# * excludes all, and ! takes files and folders back.
# expect: file /a/folder/one.txt
# expect: absent /a/folder/sub
# expect: file /a/plain.txt
# expect: absent /a/script.sh
FROM scratch
COPY . /a/
