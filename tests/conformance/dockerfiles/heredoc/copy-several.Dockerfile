# One COPY takes several heredocs and files.
# expect: file /a/one "1\n"
# expect: file /a/two "2\n"
# expect: file /a/plain.txt
FROM scratch
COPY <<one <<two plain.txt /a/
1
one
2
two
