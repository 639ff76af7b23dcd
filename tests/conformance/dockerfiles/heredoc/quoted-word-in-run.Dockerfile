# A quoted word keeps the shell from expanding the input of a command.
# expect: file /v "$A\nouter\n"
FROM busybox
ENV A=outer
RUN cat <<"EOF" > /v
$A
EOF
RUN cat <<EOF >> /v
$A
EOF
