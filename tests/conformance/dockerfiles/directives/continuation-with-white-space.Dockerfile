# White space behind the backslash at a line's end doesn't count.
# expect: config Labels {"a": "bc", "d": "e"}
FROM scratch
LABEL a=b\  
c d=e
