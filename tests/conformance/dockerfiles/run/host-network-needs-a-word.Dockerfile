# The host's network has to be allowed by the caller.
# expect: fails network.host at "RUN --network=host"
FROM busybox
RUN --network=host true
