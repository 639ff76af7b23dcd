FROM busybox AS src
RUN mkdir /data && echo payload > /data/file
FROM busybox
RUN --mount=type=bind,from=src,source=/data,target=/mnt cat /mnt/file > /copied
RUN --mount=type=bind,source=folder,target=/ctx cp /ctx/one.txt /from-context
