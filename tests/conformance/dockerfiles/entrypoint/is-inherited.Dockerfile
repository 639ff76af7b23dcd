# A stage that builds on another has its ENTRYPOINT, and a new CMD leaves it alone.
# expect: config Entrypoint ["/bin/app"]
# expect: config Cmd ["y"]
FROM scratch AS base
ENTRYPOINT ["/bin/app"]
FROM base
CMD ["y"]
