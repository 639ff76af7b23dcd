# A process left in the background ends with its step.
# expect: file /v "0\n"
FROM busybox
RUN sleep 3210 &
RUN grep -l 3210 /proc/[0-9]*/comm | wc -l > /v
