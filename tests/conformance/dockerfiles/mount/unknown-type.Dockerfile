# An unknown type is refused, with the one that it resembles.
# expect: fails "did you mean tmpfs" at "RUN --mount=type=tmp"
FROM busybox
RUN --mount=type=tmp,target=/t true
