# Writes to a mount with rw go nowhere.
# expect: file /v "new\n"
# expect: absent /m
FROM busybox
RUN --mount=target=/m,rw echo new > /m/plain.txt && cat /m/plain.txt > /v
RUN --mount=target=/m grep plain /m/plain.txt
