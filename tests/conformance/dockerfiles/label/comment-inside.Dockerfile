# A comment between the lines of a LABEL doesn't count.
# expect: config Labels {"a": "1", "b": "2"}
FROM scratch
LABEL a=1 \
  # not a label
  b=2
