FROM busybox
ADD archive.tar.bz2 /unpacked/
