# ENTRYPOINT as a JSON array.
# expect: config Entrypoint ["/bin/app", "-v"]
FROM scratch
ENTRYPOINT ["/bin/app", "-v"]
