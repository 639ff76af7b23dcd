# A mount hides the image's files for its step alone.
# expect: file /v "hidden\n"
# expect: file /mnt/f "plain\n"
FROM busybox
COPY plain.txt /mnt/f
RUN --mount=type=tmpfs,target=/mnt { [ -e /mnt/f ] || echo hidden; } > /v
