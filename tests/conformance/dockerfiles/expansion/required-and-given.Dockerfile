# ${x:?message} is the value if there is one, and ${x?message} may be empty.
# expect: config Labels {"a": "v", "b": "[]"}
FROM scratch
ENV set=v empty=
LABEL a=${set:?no} b=[${empty?no}]
