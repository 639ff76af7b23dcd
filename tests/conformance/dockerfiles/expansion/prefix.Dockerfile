# ${x#p} cuts off the shortest match at the start, ${x##p} the longest.
# expect: config Labels {"a": "b/c.d.e", "b": "c.d.e", "c": "a/b/c.d.e"}
FROM scratch
ENV v=a/b/c.d.e
LABEL a=${v#*/} b=${v##*/} c=${v#x}
