# White space before an instruction doesn't count.
# expect: config Labels {"a": "b"}
FROM scratch
   LABEL a=b
