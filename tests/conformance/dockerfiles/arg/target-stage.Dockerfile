# TARGETSTAGE is the name of the stage that is built for, "default" without --target.
# args: --target last
# expect: config Labels {"v": "last"}
FROM scratch AS last
ARG TARGETSTAGE
LABEL v=$TARGETSTAGE
