# Numbers need no such user; without a group the group is root's.
# expect: file /tmp/v "1234 0\n1234 77\n"
FROM busybox
USER 1234
RUN echo $(id -u) $(id -g) > /tmp/v
USER 1234:77
RUN echo $(id -u) $(id -g) >> /tmp/v
