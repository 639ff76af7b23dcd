# A folder that is there is left as it is.
# expect: mode /tmp 1777
# expect: owner /tmp 0:0
FROM busybox
USER www-data
WORKDIR /tmp
