# The whole of a stage can be copied, with its links, modes and owners.
# expect: owner /x/f 3:4
# expect: mode /x/f 0600
# expect: link /x/links/relative file
FROM scratch AS build
COPY --chown=3:4 --chmod=600 plain.txt /f
COPY links /links
FROM scratch
COPY --from=build / /x
