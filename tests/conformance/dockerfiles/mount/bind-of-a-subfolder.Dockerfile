# source= is a folder or file of what is mounted.
# expect: file /v "one\nplain\n"
FROM busybox
RUN --mount=source=folder,target=/m --mount=source=plain.txt,target=/f cat /m/one.txt /f > /v
