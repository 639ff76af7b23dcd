# A cache may be mounted read-only.
# expect: file /v "read-only\n"
FROM busybox
RUN --mount=type=cache,id=ro,ro,target=/c { touch /c/f 2>/dev/null || echo read-only; } > /v
