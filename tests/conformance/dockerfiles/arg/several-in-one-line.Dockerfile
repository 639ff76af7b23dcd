# One ARG may declare several variables, and none sees those beside it.
# expect: config Labels {"a": "1", "b": "2 3", "c": "[]"}
FROM scratch
ARG A=1 B="2 3" C=[$D] D=4
LABEL a=$A b=$B c=$C
