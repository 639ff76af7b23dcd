FROM busybox
ADD archive.tar.xz /unpacked/
