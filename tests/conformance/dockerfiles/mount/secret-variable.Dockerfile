# With env= a secret is a variable, and no file.
# args: --secret id=token,env=SECRET
# expect: file /v "6\nno file\n"
FROM busybox
RUN --mount=type=secret,id=token,env=TOKEN echo ${#TOKEN} > /v; [ -e /run/secrets/token ] || echo no file >> /v
