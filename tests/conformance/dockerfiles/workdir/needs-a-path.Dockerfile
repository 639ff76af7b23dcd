# WORKDIR without a path is refused.
# expect: fails WORKDIR at "WORKDIR"
FROM scratch
WORKDIR
