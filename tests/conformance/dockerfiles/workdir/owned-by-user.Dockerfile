# A folder that WORKDIR makes belongs to USER.
# expect: owner /w 33:33
FROM busybox
USER www-data
WORKDIR /w
