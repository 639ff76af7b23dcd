# RUN sees the variables of ENV, quotes gone.
# expect: file /v "a  b\n"
FROM busybox
ENV V="a  b"
RUN echo "$V" > /v
