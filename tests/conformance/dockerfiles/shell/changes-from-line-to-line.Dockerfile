# A SHELL holds for the lines below it alone.
# expect: config Cmd ["/bin/sh", "-c", "x"]
# expect: config Shell ["/two"]
FROM scratch
CMD x
SHELL ["/two"]
