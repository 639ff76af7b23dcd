FROM busybox
RUN mkdir -p /real/bin && ln -s real/bin /linked && ln -s /real /abs
COPY plain.txt /linked/
COPY plain.txt /abs/top.txt
