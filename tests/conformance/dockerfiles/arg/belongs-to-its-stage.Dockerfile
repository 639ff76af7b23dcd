# An ARG of one stage isn't known in another.
# expect: config Labels {"v": "none"}
FROM scratch AS one
ARG A=one
LABEL v=$A
FROM scratch
LABEL v=${A:-none}
