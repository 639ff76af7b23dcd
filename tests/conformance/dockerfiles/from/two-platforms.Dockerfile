# For two platforms there are two images, each with its own predefined ARGs.
# args: --platform linux/amd64,linux/arm64
# expect: file /f "linux\n"
FROM scratch
ARG TARGETOS TARGETARCH
LABEL arch=$TARGETARCH
COPY <<EOF /f
$TARGETOS
EOF
