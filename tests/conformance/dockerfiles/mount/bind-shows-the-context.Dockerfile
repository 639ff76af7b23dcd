# A mount is of type bind if nothing else is said, and shows the context, read-only.
# expect: file /v "plain\nread-only\n"
FROM busybox
RUN --mount=target=/m cat /m/plain.txt > /v && { touch /m/new 2>/dev/null || echo read-only; } >> /v
