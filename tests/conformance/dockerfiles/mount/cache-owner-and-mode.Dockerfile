# uid=, gid= and mode= are those of a new cache.
# expect: file /v "7 8 711\n"
FROM busybox
RUN --mount=type=cache,target=/c,id=owned,uid=7,gid=8,mode=711 stat -c '%u %g %a' /c > /v
