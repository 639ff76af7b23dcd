# --link=false is as if it weren't there.
# expect: file /real/plain.txt
FROM busybox
RUN mkdir /real && ln -s real /lnk
COPY --link=false plain.txt /lnk/
