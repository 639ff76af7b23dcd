# All of the line is the path.
# expect: folder "/a b"
# expect: config WorkingDir "/a b"
FROM scratch
WORKDIR /a b
