# If the destination is a folder, the file goes into it, with or without a slash.
# expect: file /a/plain.txt
# expect: file /a/script.sh
FROM scratch
COPY plain.txt /a/
COPY script.sh /a
