# A heredoc beside a command is the command's input, as the shell has it.
# expect: file /v "b\na\n"
FROM busybox
RUN sort -r <<EOF > /v
a
b
EOF
