# A command in shell form is kept as CMD-SHELL.
# expect: config Healthcheck {"Test": ["CMD-SHELL", "wget -q localhost || exit 1"]}
FROM scratch
HEALTHCHECK CMD wget -q localhost || exit 1
