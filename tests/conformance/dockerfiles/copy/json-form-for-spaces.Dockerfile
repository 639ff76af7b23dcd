# The JSON form takes names with spaces.
# expect: file "/to here/name with space.txt" "spaced\n"
FROM scratch
COPY ["name with space.txt", "/to here/"]
