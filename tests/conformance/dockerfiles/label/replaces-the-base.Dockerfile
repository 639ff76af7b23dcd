# A label replaces that of the base, the others stay.
# expect: config Labels {"a": "mine", "b": "base"}
FROM scratch AS base
LABEL a=base b=base
FROM base
LABEL a=mine
