# A file from the web is owned by root with mode 0600, and as old as Last-Modified says.
# args: --build-arg WEB={web}
# expect: file /w/file.txt "from the web\n"
# expect: mode /w/file.txt 0600
# expect: owner /w/file.txt 0:0
# expect: time /w/file.txt 1600000000
FROM scratch
ARG WEB
ADD $WEB/file.txt /w/
