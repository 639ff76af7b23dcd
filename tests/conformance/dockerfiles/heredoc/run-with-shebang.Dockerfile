# The first line of a script may name another interpreter.
# expect: file /v "awk says 7\n"
FROM busybox
RUN <<EOF
#!/bin/awk -f
BEGIN { print "awk says " 3+4 > "/v" }
EOF
