# The target is the id of a cache that has none; another id is another cache.
# expect: file /v "same\nempty\n"
FROM busybox
RUN --mount=type=cache,target=/cache-ids echo same > /cache-ids/f
RUN --mount=type=cache,id=/cache-ids,target=/c cat /c/f > /v
RUN --mount=type=cache,id=cache-ids-other,target=/c { [ -e /c/f ] || echo empty; } >> /v
