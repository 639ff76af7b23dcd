FROM busybox
COPY plain.txt folder/one.txt script.sh /many/
