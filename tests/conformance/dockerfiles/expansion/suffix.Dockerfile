# ${x%p} cuts off the shortest match at the end, ${x%%p} the longest.
# expect: config Labels {"a": "a/b/c.d", "b": "a/b/c"}
FROM scratch
ENV v=a/b/c.d.e
LABEL a=${v%.*} b=${v%%.*}
