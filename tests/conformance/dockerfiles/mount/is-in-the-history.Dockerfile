# The history has the command without its mounts.
# expect: history "RUN /bin/sh -c true # buildkit"
FROM busybox
RUN --mount=target=/m true
