# Names of one file stay names of one file in the next step.
# expect: file /v "2\n"
FROM busybox
RUN echo x > /a && ln /a /b
RUN stat -c %h /b > /v
