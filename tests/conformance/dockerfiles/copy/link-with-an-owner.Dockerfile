# --link knows no file of the stage, but numbers are enough for an owner.
# expect: owner /new/f 5:6
# expect: mode /new/f 0600
FROM busybox
COPY --link --chown=5:6 --chmod=600 plain.txt /new/f
