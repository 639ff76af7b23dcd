# A backslash before a dollar sign keeps it, in double quotes too.
# expect: config Labels {"a": "$set", "b": "${set}", "c": "\\v"}
FROM scratch
ENV set=v
LABEL a=\$set b="\${set}" c=\\$set
