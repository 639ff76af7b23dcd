# Lines that end with a backslash go on; the white space of the next one stays.
# expect: file /v "one two\n"
FROM busybox
RUN ["/bin/sh", "-c", \
     "echo one two > /v"]
