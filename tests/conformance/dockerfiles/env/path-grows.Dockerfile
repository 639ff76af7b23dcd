# PATH of the base image can be extended.
# expect: config Env ["PATH=/app:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
FROM busybox
ENV PATH=/app:$PATH
