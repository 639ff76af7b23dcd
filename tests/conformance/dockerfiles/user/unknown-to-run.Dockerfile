# A user that isn't there fails the first step that has to run as it.
# expect: fails nosuch at "RUN true"
FROM busybox
USER nosuch
RUN true
