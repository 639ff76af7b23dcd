# Two stages on one base each add their own, and a third takes from both.
# expect: file /one
# expect: file /two
# expect: absent /base
FROM scratch AS base
COPY plain.txt /base
FROM base AS left
COPY plain.txt /one
FROM base AS right
COPY script.sh /two
FROM scratch
COPY --from=left /one /
COPY --from=right /two /
