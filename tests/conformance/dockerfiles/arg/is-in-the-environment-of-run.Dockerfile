# RUN sees ARGs as variables, and the image's config doesn't.
# expect: file /v "secret-less\n"
# expect: config Env ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
FROM busybox
ARG A=secret-less
RUN echo $A > /v
