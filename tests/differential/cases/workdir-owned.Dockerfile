FROM busybox
USER 1000:1000
WORKDIR /owned/by/whom
RUN stat -c '%u:%g' . > /tmp/owner
