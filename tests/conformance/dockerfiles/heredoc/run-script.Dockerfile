# A heredoc that is all of a RUN is its script.
# expect: file /v "one two\n"
FROM busybox
RUN <<EOF
a=one
echo $a two > /v
EOF
