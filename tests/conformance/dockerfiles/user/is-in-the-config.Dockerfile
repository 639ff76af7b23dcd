# USER is kept as written, and needn't exist.
# expect: config User "nosuch:group"
FROM scratch
USER nosuch:group
