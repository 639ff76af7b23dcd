# A trigger isn't inherited by the stage after the next.
# expect: config Labels {"count": "one"}
FROM scratch AS base
ONBUILD LABEL count=${count}one
ONBUILD ENV count=two
FROM base AS next
FROM next
