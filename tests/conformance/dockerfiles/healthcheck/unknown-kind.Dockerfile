# A check is CMD or NONE.
# expect: fails "can't be 'curl'" at "HEALTHCHECK curl"
FROM scratch
HEALTHCHECK curl localhost
