# a comment
FROM busybox
RUN echo a \
# inside
    b \

    c > /joined
