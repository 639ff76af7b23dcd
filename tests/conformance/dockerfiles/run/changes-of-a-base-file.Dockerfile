# A file of the base that is changed keeps what isn't changed of it.
# expect: file /f "plain\nmore\n"
# expect: mode /f 0604
# expect: owner /f 5:6
FROM busybox
COPY --chown=5:6 --chmod=604 plain.txt /f
RUN echo more >> /f
