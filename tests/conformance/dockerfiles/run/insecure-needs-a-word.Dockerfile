# --security=insecure has to be allowed by the caller.
# expect: fails security.insecure at "RUN --security=insecure"
FROM busybox
RUN --security=insecure true
