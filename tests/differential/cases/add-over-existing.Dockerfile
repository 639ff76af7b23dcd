FROM busybox
RUN mkdir -p /unpacked/dir && echo old > /unpacked/dir/one && echo kept > /unpacked/kept
ADD archive.tar /unpacked
