# A stage that builds on another has its SHELL.
# expect: config Cmd ["/one", "x"]
FROM scratch AS base
SHELL ["/one"]
FROM base
CMD x
