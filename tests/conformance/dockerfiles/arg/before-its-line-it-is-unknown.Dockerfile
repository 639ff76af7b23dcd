# A build arg has no value above the line that declares it.
# args: --build-arg A=given
# expect: config Labels {"above": "none", "below": "given"}
FROM scratch
LABEL above=${A:-none}
ARG A
LABEL below=${A:-none}
