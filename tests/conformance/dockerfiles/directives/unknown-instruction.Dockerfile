# An unknown instruction is refused, with the one that it resembles.
# expect: fails "did you mean COPY" at "COYP a b"
FROM scratch
COYP a b
