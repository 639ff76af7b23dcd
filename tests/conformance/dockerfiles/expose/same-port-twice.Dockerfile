# A port named twice is one port, tcp and udp are two.
# expect: config ExposedPorts {"80/tcp": {}, "80/udp": {}}
FROM scratch
EXPOSE 80 80/tcp 80/udp
