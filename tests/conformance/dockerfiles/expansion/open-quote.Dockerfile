# A quote that isn't closed is refused.
# expect: fails quote at "LABEL a="
FROM scratch
LABEL a="b
