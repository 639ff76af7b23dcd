FROM busybox
EXPOSE 80 443/tcp 53/udp
VOLUME ["/data", "/logs"]
VOLUME /more
LABEL a=b "quoted key"="quoted value" multi="line \
continued"
STOPSIGNAL SIGTERM
MAINTAINER someone
