# A step that changes nothing adds no layer.
# expect: layers 2
# expect: history "RUN /bin/sh -c true # buildkit"
FROM busybox
RUN true
