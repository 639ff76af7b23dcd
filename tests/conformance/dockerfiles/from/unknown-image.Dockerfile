# An image that is nowhere ends the build at its line.
# expect: fails "nowhere" at "FROM nowhere"
FROM nowhere
