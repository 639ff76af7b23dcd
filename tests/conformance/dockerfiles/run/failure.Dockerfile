# A command that fails ends the build at its line, with its exit code.
# expect: fails "exit code: 7" at "RUN exit 7"
FROM busybox
RUN true
RUN exit 7
