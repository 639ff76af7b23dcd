FROM busybox
COPY folder /dest
COPY folder/ /dest2/
COPY folder/sub /dest3/x/y
