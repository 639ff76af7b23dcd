# A name that the stage doesn't know fails the step.
# expect: fails nosuch at "COPY --chown=nosuch"
FROM busybox
COPY --chown=nosuch plain.txt /f
