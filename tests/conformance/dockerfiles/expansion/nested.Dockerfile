# The word of a modifier may have variables, with modifiers of their own.
# expect: config Labels {"a": "deep", "b": "v.txt"}
FROM scratch
ENV set=v
LABEL a=${none:-${nothing:-deep}} b=${none:-${set}.txt}
