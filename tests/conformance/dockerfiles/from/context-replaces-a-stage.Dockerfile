# A named context with the name of a stage is used instead of it.
# args: --build-context build={context}/folder
# expect: file /one.txt "one\n"
FROM busybox AS build
RUN exit 1
FROM scratch
COPY --from=build one.txt /
