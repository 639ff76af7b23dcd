# What the server doesn't have fails the step that adds it.
# args: --build-arg WEB={web}
# expect: fails 404 at "ADD $WEB/nothing"
FROM scratch
ARG WEB
ADD $WEB/nothing /f
