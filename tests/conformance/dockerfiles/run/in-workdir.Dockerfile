# A step begins in WORKDIR.
# expect: file /w/v "/w\n"
FROM busybox
WORKDIR /w
RUN pwd > v
