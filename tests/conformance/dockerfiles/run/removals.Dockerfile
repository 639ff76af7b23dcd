# What a step removes isn't in the image, be it file or folder.
# expect: absent /a/plain.txt
# expect: absent /b
# expect: folder /a
FROM busybox
COPY plain.txt /a/
COPY folder /b
RUN rm /a/plain.txt && rm -r /b
