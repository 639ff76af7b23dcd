# A trigger may take files from a stage of the Dockerfile that runs it.
# expect: file /f "plain\n"
FROM scratch AS assets
COPY plain.txt /f
FROM scratch AS base
ONBUILD COPY --from=assets /f /f
FROM base
