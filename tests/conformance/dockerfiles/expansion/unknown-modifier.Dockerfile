# A modifier that isn't there is refused.
# expect: fails "isn't a form that is known" at "LABEL a="
FROM scratch
LABEL a=${set=w}
