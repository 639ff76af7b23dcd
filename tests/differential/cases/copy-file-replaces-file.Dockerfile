FROM busybox
RUN mkdir /d && echo old > /d/plain.txt && chmod 600 /d/plain.txt
COPY plain.txt /d/
