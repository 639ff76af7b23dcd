# Without an id the last part of the target is a secret's id.
# args: --secret id=token,env=SECRET
# expect: file /v "6\n"
FROM busybox
RUN --mount=type=secret,target=/etc/token wc -c < /etc/token > /v
