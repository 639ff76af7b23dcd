# A folder that was there keeps its owner.
# expect: owner /a 0:0
# expect: owner /a/f 5:6
FROM scratch
COPY plain.txt /a/
COPY --chown=5:6 plain.txt /a/f
