# Variables of different case are different.
# expect: config Labels {"a": "1 2"}
FROM scratch
ENV v=1 V=2
LABEL a="$v $V"
