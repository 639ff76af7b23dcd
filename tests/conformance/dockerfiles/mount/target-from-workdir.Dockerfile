# A relative target begins at WORKDIR.
# expect: file /v "plain\n"
FROM busybox
WORKDIR /w
RUN --mount=target=m cat /w/m/plain.txt > /v
