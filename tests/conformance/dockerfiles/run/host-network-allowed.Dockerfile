# With --allow network.host a step may have the host's network.
# args: --allow network.host
# expect: file /v
FROM busybox
RUN --network=host touch /v
