# CMD in shell form is run by /bin/sh -c.
# expect: config Cmd ["/bin/sh", "-c", "echo $HOME"]
# expect: config ArgsEscaped true
FROM scratch
CMD echo $HOME
