# A step is alone: the first process that it sees is its own.
# expect: file /v "1\n"
FROM busybox
RUN echo $$ > /v
