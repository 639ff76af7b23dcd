FROM busybox
RUN mkdir -m 0700 /secretdir && chown 7:8 /secretdir
COPY plain.txt /secretdir/
COPY plain.txt /secretdir
