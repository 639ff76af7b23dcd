# Stages without a name have numbers, from 0 on; --target takes them too.
# args: --target 1
# expect: file /b "plain\n"
FROM scratch
COPY plain.txt /a
FROM scratch
COPY --from=0 /a /b
FROM busybox
RUN exit 1
