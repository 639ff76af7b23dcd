# The name of a stage is kept in lower case, and that is how FROM refers to it.
# expect: config Labels {"a": "1"}
FROM scratch AS One
LABEL a=1
FROM one
