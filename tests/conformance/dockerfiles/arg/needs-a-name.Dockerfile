# An ARG that is only a value is refused.
# expect: fails "has no name" at "ARG =x"
FROM scratch
ARG =x
