# --chown with numbers needs no such user.
# expect: owner /f 12:34
FROM scratch
COPY --chown=12:34 plain.txt /f
