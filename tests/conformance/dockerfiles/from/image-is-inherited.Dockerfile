# The config of the base image is that of the stage.
# expect: config Cmd ["sh"]
# expect: layers 2
FROM busybox
