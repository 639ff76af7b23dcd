# target=, mode= and uid= say where a secret is and whose.
# args: --secret id=token,env=SECRET
# expect: file /v "444 7 0\n"
FROM busybox
RUN --mount=type=secret,id=token,target=/etc/token,mode=444,uid=7 stat -c '%a %u %g' /etc/token > /v
