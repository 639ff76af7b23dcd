# EXPOSE takes ports and ranges, tcp if nothing else is said.
# expect: config ExposedPorts {"53/udp": {}, "80/tcp": {}, "90/tcp": {}, "91/tcp": {}, "92/tcp": {}}
FROM scratch
EXPOSE 80 53/udp 90-92
