# Ports may come from variables.
# expect: config ExposedPorts {"8080/tcp": {}}
FROM scratch
ARG PORT=8080
EXPOSE $PORT
