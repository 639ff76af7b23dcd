# Steps run as USER, with its groups.
# expect: file /tmp/v "33 33\n"
# expect: owner /tmp/v 33:33
FROM busybox
USER www-data
RUN echo $(id -u) $(id -g) > /tmp/v
