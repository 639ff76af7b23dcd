# With several sources the destination must end with a slash.
# expect: fails "needs a folder as its destination" at "COPY plain.txt"
FROM scratch
COPY plain.txt script.sh /a
