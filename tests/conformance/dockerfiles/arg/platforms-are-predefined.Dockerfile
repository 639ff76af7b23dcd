# TARGETPLATFORM is TARGETOS/TARGETARCH, and has to be declared in a stage.
# expect: config Labels {"rest": "[]", "undeclared": "none"}
FROM scratch
LABEL undeclared=${TARGETOS:-none}
ARG TARGETPLATFORM TARGETOS TARGETARCH
LABEL rest=[${TARGETPLATFORM#$TARGETOS/$TARGETARCH}]
