# A stage that builds on another begins in its WORKDIR.
# expect: config WorkingDir "/a/b"
FROM scratch AS base
WORKDIR /a
FROM base
WORKDIR b
