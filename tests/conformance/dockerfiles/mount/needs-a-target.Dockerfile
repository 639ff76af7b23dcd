# A bind mount has no target of its own.
# expect: fails target at "RUN --mount=type=bind"
FROM busybox
RUN --mount=type=bind,source=folder true
