# VOLUME is expanded.
# expect: config Volumes {"/v/x": {}}
FROM scratch
ENV V=/v
VOLUME $V/x
