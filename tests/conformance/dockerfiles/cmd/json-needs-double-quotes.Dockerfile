# What is no JSON array of strings is a command in shell form.
# expect: config Cmd ["/bin/sh", "-c", "['a', 'b']"]
FROM scratch
CMD ['a', 'b']
