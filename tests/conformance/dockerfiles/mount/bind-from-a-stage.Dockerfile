# from= mounts a stage.
# expect: file /v "plain\n"
FROM scratch AS build
COPY plain.txt /out/f
FROM busybox
RUN --mount=from=build,source=/out,target=/m cat /m/f > /v
