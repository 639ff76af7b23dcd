FROM busybox
SHELL ["/bin/ash", "-e", "-c"]
RUN false || echo went-on > /state
CMD echo hi
