FROM busybox
COPY . /everything/
