# Triggers run in the order of their lines, before the stage's own.
# expect: file /v "1\n2\n3\n"
FROM busybox AS base
ONBUILD RUN echo 1 >> /v
ONBUILD RUN echo 2 >> /v
FROM base
RUN echo 3 >> /v
