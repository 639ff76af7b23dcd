# A global ARG has no value in a stage that doesn't declare it again.
# expect: config Labels {"v": "none"}
ARG A=global
FROM scratch
LABEL v=${A:-none}
