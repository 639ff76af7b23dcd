# Of what docker run publishes only the container's port counts.
# expect: config ExposedPorts {"8080/tcp": {}, "90/udp": {}}
FROM scratch
EXPOSE 127.0.0.1:80:8080 9000:90/udp
