# HTTP_PROXY and its like need no ARG, and are kept out of the history.
# args: --build-arg HTTP_PROXY=http://proxy.example
# expect: file /v "http://proxy.example\n"
# expect: history "RUN /bin/sh -c echo $HTTP_PROXY > /v # buildkit"
FROM busybox
RUN echo $HTTP_PROXY > /v
