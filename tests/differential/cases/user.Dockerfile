FROM busybox
RUN echo app:x:1001:1001::/home/app:/bin/sh >> /etc/passwd \
 && echo app:x:1001: >> /etc/group && echo extra:x:2002:app >> /etc/group \
 && mkdir /own && chown app /own
USER app
RUN id -u > /own/uid && id -g > /own/gid && id -G > /own/groups && echo $HOME > /own/home
USER 65534:65534
CMD ["id"]
