# An SSH agent is a socket that SSH_AUTH_SOCK names.
# args: --ssh default={agent}
# expect: file /v "socket\n"
FROM busybox
RUN --mount=type=ssh [ -S "$SSH_AUTH_SOCK" ] && echo socket > /v
