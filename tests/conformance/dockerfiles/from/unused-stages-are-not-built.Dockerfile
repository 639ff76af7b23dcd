# A stage that the target doesn't need isn't run.
# expect: config Labels {"a": "1"}
FROM busybox AS unused
RUN exit 1
FROM scratch
LABEL a=1
