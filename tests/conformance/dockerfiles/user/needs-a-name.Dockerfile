# USER without a name is refused.
# expect: fails USER at "USER"
FROM scratch
USER
