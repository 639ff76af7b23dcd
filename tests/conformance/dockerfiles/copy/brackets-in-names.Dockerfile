# A bracket in a name is written [[].
# expect: file /a/[odd].txt "odd\n"
FROM scratch
COPY glob/[[]odd].txt /a/
