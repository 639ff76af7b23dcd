FROM busybox
COPY ["name with space.txt", "/dest with space/"]
