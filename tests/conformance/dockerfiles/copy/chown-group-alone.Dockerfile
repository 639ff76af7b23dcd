# --chown=:group leaves the user to root.
# expect: owner /f 0:50
FROM busybox
COPY --chown=:staff plain.txt /f
