# A user by name has its groups of /etc/group, root by default has its own alone.
# expect: file /v "0\n0 10\n"
FROM busybox
RUN id -G > /v
USER root
RUN id -G >> /v
