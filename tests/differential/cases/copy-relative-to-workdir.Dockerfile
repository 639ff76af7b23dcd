FROM busybox
WORKDIR /work/dir
COPY plain.txt .
COPY plain.txt sub/renamed
COPY folder ../beside/
