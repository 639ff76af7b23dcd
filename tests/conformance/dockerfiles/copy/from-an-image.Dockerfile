# --from takes files of any image.
# expect: file /passwd
FROM scratch
COPY --from=busybox /etc/passwd /
