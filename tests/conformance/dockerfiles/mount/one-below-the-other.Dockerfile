# A mount may be below another one.
# expect: file /v "one\n"
FROM busybox
RUN --mount=type=tmpfs,target=/m --mount=source=folder,target=/m/sub cat /m/sub/one.txt > /v
