# A heredoc may be empty.
# expect: file /f ""
FROM scratch
COPY <<EOF /f
EOF
