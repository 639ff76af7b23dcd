# A stage that builds on another knows its ARGs.
# expect: config Labels {"v": "one"}
FROM scratch AS one
ARG A=one
FROM one
LABEL v=$A
