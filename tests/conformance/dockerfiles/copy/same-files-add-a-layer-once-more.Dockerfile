# A COPY of the same file is a layer again.
# expect: layers 2
FROM scratch
COPY plain.txt /
COPY plain.txt /
