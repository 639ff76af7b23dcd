# The name of a user alone stands for the group of that user as well.
# expect: owner /f 4:7
FROM busybox
COPY --chown=lp plain.txt /f
