# The default of an ARG may use ARGs above it.
# expect: config Labels {"v": "one-two"}
FROM scratch
ARG A=one
ARG B=${A}-two
LABEL v=$B
