# NONE switches off the check of the base.
# expect: config Healthcheck {"Test": ["NONE"]}
FROM scratch AS base
HEALTHCHECK CMD ["ok"]
FROM base
HEALTHCHECK NONE
