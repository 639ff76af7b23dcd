# In LABEL name value all the rest is the value.
# expect: config Labels {"a": "one two"}
FROM scratch
LABEL a one two
