# RUN in shell form is run by /bin/sh -c.
# expect: file /v "/bin/sh ok\n"
FROM busybox
RUN echo $0 ok > /v
