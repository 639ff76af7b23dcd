# An ARG without a build arg has its default.
# expect: config Labels {"v": "one"}
FROM scratch
ARG A=one
LABEL v=$A
