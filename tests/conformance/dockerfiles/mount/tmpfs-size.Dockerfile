# size= is how much a tmpfs holds, in bytes.
# expect: file /v "1024\n"
FROM busybox
RUN --mount=type=tmpfs,target=/t,size=1048576 df -k /t | awk 'NR == 2 { print $2 }' > /v
