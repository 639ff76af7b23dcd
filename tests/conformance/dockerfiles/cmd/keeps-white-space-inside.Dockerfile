# White space inside of a command in shell form is kept.
# expect: config Cmd ["/bin/sh", "-c", "echo  a   b"]
FROM scratch
CMD   echo  a   b
