FROM busybox
ADD --chown=1234:4321 archive.tar /unpacked/
