# An ARG without default and build arg is unset, not empty.
# expect: config Labels {"v": "unset"}
FROM scratch
ARG A
LABEL v=${A-unset}
