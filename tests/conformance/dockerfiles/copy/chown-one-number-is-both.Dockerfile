# A user id without a group is the group's id too.
# expect: owner /f 12:12
FROM scratch
COPY --chown=12 plain.txt /f
