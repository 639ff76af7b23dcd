# An interval below a millisecond is refused.
# expect: fails "less than a millisecond" at "HEALTHCHECK --interval"
FROM scratch
HEALTHCHECK --interval=1us CMD ["ok"]
