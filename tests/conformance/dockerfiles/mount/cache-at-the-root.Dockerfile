# Nothing can be mounted at the root.
# expect: fails / at "RUN --mount=type=cache"
FROM busybox
RUN --mount=type=cache,target=/ true
