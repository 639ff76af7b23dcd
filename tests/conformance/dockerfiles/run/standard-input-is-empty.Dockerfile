# A step has nothing to read on its standard input.
# expect: file /v "0\n"
FROM busybox
RUN wc -c > /v
