# An empty build arg wins over a default too.
# args: --build-arg A=
# expect: config Labels {"v": "[]"}
FROM scratch
ARG A=one
LABEL v=[$A]
