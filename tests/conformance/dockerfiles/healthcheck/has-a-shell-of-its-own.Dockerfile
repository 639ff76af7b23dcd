# SHELL doesn't change a check in shell form.
# expect: config Healthcheck {"Test": ["CMD-SHELL", "true"]}
FROM scratch
SHELL ["/bin/other"]
HEALTHCHECK CMD true
