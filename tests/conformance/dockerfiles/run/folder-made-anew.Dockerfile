# A folder that is removed and made again has nothing of before.
# expect: file /a/new ""
# expect: absent /a/one.txt
FROM busybox
COPY folder /a
RUN rm -r /a && mkdir /a && touch /a/new
