# Lines may end as on Windows.
# expect: config Labels {"a": "b", "c": "de"}
FROM scratch
LABEL a=b
LABEL c=d\
e
