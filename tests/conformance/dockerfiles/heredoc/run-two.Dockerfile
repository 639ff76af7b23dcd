# Several heredocs of one line follow each other.
# expect: file /v "one\ntwo\n"
FROM busybox
RUN cat /dev/fd/3 3<<ONE - <<TWO > /v
one
ONE
two
TWO
