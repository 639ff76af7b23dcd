# A cache belongs to root, with mode 0755.
# expect: file /v "0 0 755\n"
FROM busybox
RUN --mount=type=cache,target=/c,id=usual stat -c '%u %g %a' /c > /v
