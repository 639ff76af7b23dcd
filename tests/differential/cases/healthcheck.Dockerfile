FROM busybox
HEALTHCHECK --interval=5s --timeout=3s --retries=4 --start-period=1m CMD wget -q localhost || exit 1
