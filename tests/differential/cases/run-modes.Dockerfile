FROM busybox
RUN mkdir -m 1777 /sticky && touch /suid && chmod 4755 /suid && touch /sgid && chmod 2711 /sgid && mkdir -m 2775 /gdir && chown 3:5 /gdir
