# The usual devices are there, and none of them gets into the image.
# expect: file /v "ok\n"
# expect: absent /dev/null
FROM busybox
RUN echo lost > /dev/null && [ -c /dev/zero ] && [ -c /dev/urandom ] && echo ok > /v
