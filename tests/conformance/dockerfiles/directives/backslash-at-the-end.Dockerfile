# A backslash at the end of the file continues nothing.
# expect: config Labels {"a": "b"}
FROM scratch
LABEL a=b \
