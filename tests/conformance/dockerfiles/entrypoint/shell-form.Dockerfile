# ENTRYPOINT in shell form is run by /bin/sh -c.
# expect: config Entrypoint ["/bin/sh", "-c", "app -v"]
FROM scratch
ENTRYPOINT app -v
