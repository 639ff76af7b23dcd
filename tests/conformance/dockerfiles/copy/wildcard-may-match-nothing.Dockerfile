# A wildcard that matches nothing copies nothing.
# expect: file /a/plain.txt
# expect: absent /a/none
FROM scratch
COPY plain.txt none* /a/
