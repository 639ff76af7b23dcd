# syntax=docker/dockerfile:1.4-labs
# The frontend docker/dockerfile is this very language, in any version.
# expect: config Labels {"a": "b"}
FROM scratch
LABEL a=b
