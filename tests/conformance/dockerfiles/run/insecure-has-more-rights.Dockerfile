# With --security=insecure, if it is allowed, a step may mount.
# args: --allow security.insecure
# expect: file /v "refused\nmounted\n"
FROM busybox
RUN { mount -t tmpfs x /mnt 2>/dev/null || echo refused; } > /v
RUN --security=insecure mount -t tmpfs x /mnt && echo mounted >> /v && umount /mnt
