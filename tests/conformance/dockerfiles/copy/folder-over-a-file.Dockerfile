# A folder never replaces a file.
# expect: fails "/f" at "COPY folder /f"
FROM scratch
COPY plain.txt /f
COPY folder /f
