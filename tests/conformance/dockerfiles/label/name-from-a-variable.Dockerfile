# Names are expanded as well as values.
# expect: config Labels {"v.x": "v"}
FROM scratch
ENV set=v
LABEL $set.x=$set
