# Of two mounts on one target the later one shows.
# expect: file /v "one\n"
FROM busybox
RUN --mount=source=glob,target=/m --mount=source=folder,target=/m cat /m/one.txt > /v
