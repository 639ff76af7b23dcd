FROM busybox
COPY script.sh readonly.txt /modes/
