# COPY into a VOLUME is in the image.
# expect: file /a/plain.txt
FROM scratch
VOLUME /a
COPY plain.txt /a/
