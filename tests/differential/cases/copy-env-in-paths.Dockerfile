FROM busybox
ENV SRC=folder DST=/opt/place
COPY ${SRC}/one.txt ${DST}/
COPY $SRC/two.txt $DST/renamed.txt
