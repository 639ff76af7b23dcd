# WORKDIR is expanded.
# expect: config WorkingDir "/x/y"
# expect: folder /x/y
FROM scratch
ENV D=/x
WORKDIR $D/y
