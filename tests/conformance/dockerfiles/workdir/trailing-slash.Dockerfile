# A slash at the end of an absolute WORKDIR is kept in the config.
# expect: config WorkingDir "/a/"
# expect: folder /a
FROM scratch
WORKDIR /a/
