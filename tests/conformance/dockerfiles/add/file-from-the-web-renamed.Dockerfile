# A destination without a slash is the name of the file from the web; --chmod and --chown apply.
# args: --build-arg WEB={web}
# expect: file /renamed "from the web\n"
# expect: mode /renamed 0644
# expect: owner /renamed 3:4
FROM scratch
ARG WEB
ADD --chmod=644 --chown=3:4 $WEB/file.txt /renamed
