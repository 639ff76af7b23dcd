# ADD takes heredocs, and unpacks nothing of them.
# expect: file /f "added\n"
FROM scratch
ADD <<EOF /f
added
EOF
