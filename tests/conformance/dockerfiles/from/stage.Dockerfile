# FROM a stage goes on where that one ends.
# expect: config Labels {"a": "1", "b": "2"}
# expect: file /plain.txt
FROM scratch AS one
COPY plain.txt /
LABEL a=1
FROM one
LABEL b=2
