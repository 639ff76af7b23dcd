# With --link the destination has folders alone: no link of the stage is followed.
# expect: folder /lnk
# expect: file /lnk/plain.txt
# expect: absent /real/plain.txt
FROM busybox
RUN mkdir /real && ln -s real /lnk
COPY --link plain.txt /lnk/
