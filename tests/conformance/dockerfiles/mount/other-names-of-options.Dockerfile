# dst and destination are target, src is source; options are the same in any case.
# expect: file /v "one\nplain\n"
FROM busybox
RUN --mount=SRC=folder,dst=/m --mount=Source=plain.txt,destination=/f cat /m/one.txt /f > /v
