# A secret is a file below /run/secrets, for root alone, and not in the image.
# args: --secret id=token,env=SECRET
# expect: file /v "6\n400 0 0\n"
# expect: absent /run/secrets
FROM busybox
RUN --mount=type=secret,id=token wc -c < /run/secrets/token > /v && stat -c '%a %u %g' /run/secrets/token >> /v
