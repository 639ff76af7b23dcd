# Nothing but ARG may stand above the first FROM.
# expect: fails "before the first FROM" at "LABEL a=b"
LABEL a=b
FROM scratch
