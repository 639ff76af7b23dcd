# A step has the groups that /etc/group gives its user, root by default too.
# expect: file /v "0 10\n0 10\n"
FROM busybox
RUN id -G > /v
USER root
RUN id -G >> /v
