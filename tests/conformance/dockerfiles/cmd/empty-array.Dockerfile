# An empty array is an empty command.
# expect: config Cmd null
FROM busybox
CMD []
