# Steps below a VOLUME may change files in it, and that is in the image.
# expect: file /a/new "x\n"
FROM busybox
VOLUME /a
RUN mkdir -p /a && echo x > /a/new
