# Variables in the heredoc of a RUN are left to the shell.
# expect: file /v "inner outer\n"
FROM busybox
ENV A=outer
RUN <<EOF
A=inner sh -c 'echo $A > /v'
echo "$(cat /v) $A" > /v
EOF
