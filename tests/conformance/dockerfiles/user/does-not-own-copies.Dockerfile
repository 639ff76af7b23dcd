# COPY is root's whoever USER is.
# expect: owner /plain.txt 0:0
FROM busybox
USER www-data
COPY plain.txt /
