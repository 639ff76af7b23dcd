# --platform takes the predefined variables without an ARG.
# expect: config Labels {"a": "1"}
FROM --platform=$BUILDPLATFORM scratch
LABEL a=1
