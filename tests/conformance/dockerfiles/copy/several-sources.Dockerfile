# Several sources go into the destination, folders with their contents.
# expect: file /a/plain.txt
# expect: file /a/script.sh
# expect: file /a/a1.txt
FROM scratch
COPY plain.txt script.sh glob /a/
