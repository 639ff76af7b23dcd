# An ARG without default in a stage takes the value of the global one.
# expect: config Labels {"v": "global"}
ARG A=global
FROM scratch
ARG A
LABEL v=$A
