# An unknown flag is refused, with the one that it resembles.
# expect: fails "did you mean --from" at "COPY --form=x"
FROM scratch
COPY --form=x a b
