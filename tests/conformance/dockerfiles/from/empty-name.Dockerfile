# A base that expands to nothing is refused.
# expect: fails "should not be blank" at "FROM $BASE"
ARG BASE
FROM $BASE
