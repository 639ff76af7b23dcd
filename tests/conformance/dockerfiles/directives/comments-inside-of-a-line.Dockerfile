# Comments and empty lines between continued lines don't count.
# expect: file /v "one two\n"
FROM busybox
RUN echo one \
# no part of it

    # nor this
    two > /v
