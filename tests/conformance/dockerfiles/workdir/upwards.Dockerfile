# .. leads upwards, and no further than the root.
# expect: config WorkingDir "/b"
FROM scratch
WORKDIR /a
WORKDIR ../../b
