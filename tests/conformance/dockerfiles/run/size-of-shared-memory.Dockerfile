# --shm-size is the size of /dev/shm.
# args: --shm-size 3m
# expect: file /v "3072\n"
FROM busybox
RUN df -k /dev/shm | awk 'NR == 2 { print $2 }' > /v
