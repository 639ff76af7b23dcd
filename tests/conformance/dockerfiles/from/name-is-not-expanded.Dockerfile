# The name of a stage can't come from a variable.
# expect: fails "$NAME" at "FROM scratch AS"
ARG NAME=x
FROM scratch AS $NAME
