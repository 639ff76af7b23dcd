FROM busybox
RUN addgroup -g 777 crew && adduser -D -u 555 -G crew sailor
COPY --chown=sailor:crew plain.txt /home/sailor/one
COPY --chown=sailor plain.txt /home/sailor/two
COPY --chown=12:34 folder /numbers/
