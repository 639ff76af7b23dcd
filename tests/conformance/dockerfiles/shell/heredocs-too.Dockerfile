# A script in a heredoc is run by SHELL.
# expect: file /v "3\n"
FROM busybox
SHELL ["/bin/sh", "-c", "echo 3 > /v"]
RUN <<EOF
exit 1
EOF
