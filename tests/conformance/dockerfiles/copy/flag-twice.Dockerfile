# A flag that takes one value can't be given twice.
# expect: fails --chown at "COPY --chown=1 --chown=2"
FROM scratch
COPY --chown=1 --chown=2 plain.txt /
