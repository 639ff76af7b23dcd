# Files of --link appear beside those that the stage has in the same folder.
# expect: file /a/plain.txt
# expect: file /a/script.sh
FROM scratch
COPY plain.txt /a/
COPY --link script.sh /a/
