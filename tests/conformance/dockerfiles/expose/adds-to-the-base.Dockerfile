# EXPOSE adds to what the stage below has.
# expect: config ExposedPorts {"80/tcp": {}, "81/tcp": {}}
FROM scratch AS base
EXPOSE 80
FROM base
EXPOSE 81/tcp
