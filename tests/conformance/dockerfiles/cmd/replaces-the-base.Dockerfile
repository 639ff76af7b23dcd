# CMD replaces that of the base image.
# expect: config Cmd ["mine"]
FROM busybox
CMD ["mine"]
