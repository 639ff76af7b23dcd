# Options of other types are refused: a bind mount has no owner.
# expect: fails uid at "RUN --mount=target=/m,uid=1"
FROM busybox
RUN --mount=target=/m,uid=1 true
