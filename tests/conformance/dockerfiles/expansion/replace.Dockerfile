# ${x/p/r} replaces the first match, ${x//p/r} all.
# expect: config Labels {"a": "a-b.c", "b": "a-b-c", "c": "abc"}
FROM scratch
ENV v=a.b.c
LABEL a=${v/./-} b=${v//./-} c=${v//./}
