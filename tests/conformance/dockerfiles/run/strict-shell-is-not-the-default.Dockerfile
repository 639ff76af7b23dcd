# Only the last command of a line decides whether a step failed.
# expect: file /v "went on\n"
FROM busybox
RUN false; echo went on > /v
