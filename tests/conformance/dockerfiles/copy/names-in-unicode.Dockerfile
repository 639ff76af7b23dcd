# Names may have any characters.
# expect: file /ünïcode.txt "unicode\n"
# expect: file /größe
FROM scratch
COPY ünïcode.txt /
COPY plain.txt /größe
