# A group is looked up by its name.
# expect: file /tmp/v "8 50\n"
FROM busybox
USER mail:staff
RUN echo $(id -u) $(id -g) > /tmp/v
