# A relative WORKDIR is joined with the one before.
# expect: folder /a/b/c
# expect: config WorkingDir "/a/b/c"
FROM scratch
WORKDIR /a
WORKDIR b
WORKDIR ./c
