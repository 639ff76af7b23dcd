# Files of a stage keep owner and mode.
# expect: owner /f 5:6
# expect: mode /f 0604
FROM scratch AS build
COPY --chown=5:6 --chmod=604 plain.txt /f
FROM scratch
COPY --from=build /f /f
