# BUILDKIT_SANDBOX_HOSTNAME is the host's name in steps.
# args: --build-arg BUILDKIT_SANDBOX_HOSTNAME=builder
# expect: file /v "builder\n"
FROM busybox
RUN hostname > /v
