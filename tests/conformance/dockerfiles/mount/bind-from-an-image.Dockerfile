# from= mounts an image.
# expect: file /v "root\n"
FROM busybox
RUN --mount=from=alpine,target=/m head -n 1 /m/etc/passwd | cut -d: -f1 > /v
