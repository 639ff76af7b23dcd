# What is written to a cache is there in the next step, and not in the image.
# expect: file /v "kept\n"
# expect: absent /c
FROM busybox
RUN --mount=type=cache,id=is-kept,target=/c echo kept > /c/f
RUN --mount=type=cache,id=is-kept,target=/c cat /c/f > /v
