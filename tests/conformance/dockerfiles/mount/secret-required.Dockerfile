# A required secret that nobody gave ends the build.
# expect: fails token at "RUN --mount=type=secret"
FROM busybox
RUN --mount=type=secret,id=token,required true
