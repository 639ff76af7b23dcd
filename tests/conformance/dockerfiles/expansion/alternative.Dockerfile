# ${x:+w} is w if x has a value, ${x+w} also if it is empty.
# expect: config Labels {"a": "w", "b": "[]", "c": "w", "d": "[]"}
FROM scratch
ENV set=v empty=
LABEL a=${set:+w} b=[${empty:+w}] c=${empty+w} d=[${none+w}]
