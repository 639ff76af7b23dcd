FROM busybox
RUN adduser -D -u 1001 app && mkdir /own && chown app /own
USER app
RUN id -u > /own/uid && id -g > /own/gid && echo $HOME > /own/home
USER 65534:65534
CMD ["id"]
