# WORKDIR makes the folder, with those above it.
# expect: folder /a/b
# expect: mode /a/b 0755
# expect: config WorkingDir "/a/b"
FROM scratch
WORKDIR /a/b
