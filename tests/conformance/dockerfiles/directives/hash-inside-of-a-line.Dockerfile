# A # that doesn't begin a line is no comment.
# expect: config Labels {"a": "b#c"}
FROM scratch
LABEL a=b#c
