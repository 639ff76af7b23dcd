# In patterns ? is any one character, \? is itself.
# expect: config Labels {"a": "bc?", "b": "abc"}
FROM scratch
ENV v=abc?
LABEL a=${v#?} b=${v%\?}
