# An ENTRYPOINT drops the CMD of the base image.
# expect: config Entrypoint ["/bin/app"]
# expect: config Cmd null
FROM busybox
ENTRYPOINT ["/bin/app"]
