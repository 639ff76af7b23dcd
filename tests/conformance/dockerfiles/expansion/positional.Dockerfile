# Variables of the shell, as $1 and $@, are empty.
# expect: config Labels {"a": "[]", "b": "[]"}
FROM scratch
LABEL a=[$1] b=[$@]
