# A stage's name begins with a letter.
# expect: fails "1st" at "FROM scratch AS 1st"
FROM scratch AS 1st
