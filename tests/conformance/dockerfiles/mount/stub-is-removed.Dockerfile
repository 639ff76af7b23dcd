# The folder made for a mount is gone after the step; what was there stays.
# expect: absent /not
# expect: folder /mnt
# expect: file /v
FROM busybox
RUN --mount=target=/not/there --mount=type=tmpfs,target=/mnt touch /v /mnt/x
