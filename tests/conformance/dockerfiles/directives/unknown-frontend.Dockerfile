# syntax=example/other:1
# The directive syntax with another frontend than Dockerfile's is refused: nothing is ever fetched for it.
# expect: fails "example/other" at "# syntax=example/other"
FROM scratch
