# --ulimit holds in every step.
# args: --ulimit nofile=99:100
# expect: file /v "99\n100\n"
FROM busybox
RUN ulimit -Sn > /v; ulimit -Hn >> /v
