FROM busybox
RUN echo crew:x:777: >> /etc/group && echo sailor:x:555:777::/home/sailor:/bin/sh >> /etc/passwd
COPY --chown=sailor:crew plain.txt /home/sailor/one
COPY --chown=sailor plain.txt /home/sailor/two
COPY --chown=12:34 folder /numbers/
