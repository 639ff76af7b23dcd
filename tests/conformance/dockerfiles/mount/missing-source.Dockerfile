# A source that the stage doesn't have fails the step.
# expect: fails "nothing" at "RUN --mount=from=build"
FROM scratch AS build
COPY plain.txt /
FROM busybox
RUN --mount=from=build,source=/nothing,target=/m true
