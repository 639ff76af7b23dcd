# A tmpfs is empty, can be written to, and leaves nothing.
# expect: file /v "tmpfs\n"
# expect: absent /t
FROM busybox
RUN --mount=type=tmpfs,target=/t touch /t/f && grep ' /t ' /proc/mounts | cut -d' ' -f3 > /v
