# VOLUME is a list or a JSON array.
# expect: config Volumes {"/a": {}, "/b": {}, "/c d": {}}
FROM scratch
VOLUME /a /b
VOLUME ["/c d"]
