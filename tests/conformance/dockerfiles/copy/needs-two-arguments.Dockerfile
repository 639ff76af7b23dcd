# COPY without a destination is refused.
# expect: fails "has no destination" at "COPY plain.txt"
FROM scratch
COPY plain.txt
