# A trigger may have a heredoc.
# expect: file /f "text\n"
FROM scratch AS base
ONBUILD COPY <<EOF /f
text
EOF
FROM base
