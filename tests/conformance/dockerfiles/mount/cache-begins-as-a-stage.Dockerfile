# With from= a cache begins with those files.
# expect: file /v "plain\n"
FROM scratch AS start
COPY plain.txt /s/f
FROM busybox
RUN --mount=type=cache,id=begun,from=start,source=/s,target=/c cat /c/f > /v
