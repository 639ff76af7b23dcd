# Variables don't work in --from.
# expect: fails --from at "COPY --from=$A"
FROM scratch
ARG A=busybox
COPY --from=$A /etc/passwd /
