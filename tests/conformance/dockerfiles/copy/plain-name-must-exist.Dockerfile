# A source without wildcards must be there; the line that names it is at fault.
# expect: fails "missing.txt" at "COPY missing.txt"
FROM scratch
COPY plain.txt /
COPY missing.txt /
