FROM busybox
COPY .hidden /dest/
COPY folder /dest
