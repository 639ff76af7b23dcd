FROM busybox
RUN ["touch", "/made by exec"]
RUN ["/bin/sh", "-c", "echo $HOME > /home-value"]
