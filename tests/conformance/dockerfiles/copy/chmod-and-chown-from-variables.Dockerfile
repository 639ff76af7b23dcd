# The values of --chmod and --chown are expanded.
# args: --build-arg WHO=8:9
# expect: mode /f 0600
# expect: owner /f 8:9
FROM scratch
ARG MODE=600 WHO
COPY --chmod=$MODE --chown=${WHO} plain.txt /f
