# check=skip=FromAsCasing;error=true
# Checks that check=skip= names are not made.
# expect: config Labels {"a": "b"}
FROM scratch as x
LABEL a=b
