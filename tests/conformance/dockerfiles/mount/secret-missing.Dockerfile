# A secret that nobody gave is left out if it isn't required.
# expect: file /v "none\n"
FROM busybox
RUN --mount=type=secret,id=token { [ -e /run/secrets/token ] || echo none; } > /v
