# Names are looked up in the files of the stage.
# expect: owner /f 33:50
FROM busybox
COPY --chown=www-data:staff plain.txt /f
