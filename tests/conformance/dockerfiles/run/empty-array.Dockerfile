# RUN with an empty array is refused.
# expect: fails RUN at "RUN []"
FROM busybox
RUN []
