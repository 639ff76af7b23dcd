# A network is default, none or host.
# expect: fails bridge at "RUN --network=bridge"
FROM busybox
RUN --network=bridge true
