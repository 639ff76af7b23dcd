# RUN as a JSON array is a program with its arguments, and nothing is expanded.
# expect: file /$HOME
FROM busybox
RUN ["touch", "/$HOME"]
