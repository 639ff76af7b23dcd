# The values of a mount are expanded, but for from=.
# expect: file /v "one\n"
FROM busybox
ARG SUB=folder TARGET=/m
RUN --mount=source=$SUB,target=$TARGET cat /m/one.txt > /v
