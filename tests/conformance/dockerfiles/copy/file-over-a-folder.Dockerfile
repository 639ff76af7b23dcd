# A file below the copied folder never replaces a folder.
# expect: fails "/a/one.txt" at "COPY folder /a"
FROM busybox
RUN mkdir -p /a/one.txt
COPY folder /a
