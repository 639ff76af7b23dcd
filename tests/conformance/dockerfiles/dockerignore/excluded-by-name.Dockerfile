# An excluded file can't be copied by its name: it isn't in the context.
# expect: fails "ignored.log" at "COPY ignored.log"
FROM scratch
COPY ignored.log /
