FROM busybox
ADD not-an-archive.tar.gz /dest/
