# A build arg wins over the default of its ARG.
# args: --build-arg A=two
# expect: config Labels {"v": "two"}
FROM scratch
ARG A=one
LABEL v=$A
