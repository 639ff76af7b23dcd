# A brace that isn't closed is refused.
# expect: fails "never closed" at "LABEL a="
FROM scratch
LABEL a=${set
