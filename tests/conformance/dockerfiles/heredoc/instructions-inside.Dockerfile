# What looks like an instruction or comment inside of a heredoc is text.
# expect: file /f "FROM nowhere\n# comment\nback\\\n"
FROM scratch
COPY <<"EOF" /f
FROM nowhere
# comment
back\
EOF
