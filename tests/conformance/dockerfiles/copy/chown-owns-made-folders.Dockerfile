# Folders that COPY has to make for the destination belong to --chown's owner.
# expect: owner /new 5:6
# expect: owner /new/deep 5:6
# expect: owner /new/deep/f 5:6
FROM scratch
COPY --chown=5:6 plain.txt /new/deep/f
