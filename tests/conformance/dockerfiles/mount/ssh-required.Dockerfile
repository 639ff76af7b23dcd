# A required agent that nobody gave ends the build.
# expect: fails ssh at "RUN --mount=type=ssh"
FROM busybox
RUN --mount=type=ssh,required true
