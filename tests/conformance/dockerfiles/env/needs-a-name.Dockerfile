# A value without a name is refused.
# expect: fails "ENV names can't be empty" at "ENV =x"
FROM scratch
ENV =x
