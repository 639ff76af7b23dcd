# ADD has no --from: only COPY takes files from stages.
# expect: fails --from at "ADD --from"
FROM scratch
ADD --from=busybox /bin/sh /
