# An ARG without arguments is refused.
# expect: fails "ARG has no argument" at ARG
FROM scratch
ARG
