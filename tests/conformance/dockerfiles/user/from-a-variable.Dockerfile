# USER is expanded.
# expect: config User "33:50"
FROM scratch
ARG U=33 G=50
USER $U:${G}
