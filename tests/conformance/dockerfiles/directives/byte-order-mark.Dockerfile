# A byte order mark before the first line doesn't count.
# expect: config Labels {"a": "b"}
FROM scratch
LABEL a=b
