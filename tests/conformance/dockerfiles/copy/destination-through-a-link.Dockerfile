# A link in the destination's path is followed, inside of the image.
# expect: link /lnk real
# expect: file /real/plain.txt
FROM busybox
RUN mkdir /real && ln -s real /lnk
COPY plain.txt /lnk/
