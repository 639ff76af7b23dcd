# An unknown option is refused.
# expect: fails "did you mean target" at "RUN --mount=targt"
FROM busybox
RUN --mount=targt=/t true
