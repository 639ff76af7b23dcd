# The history line of a RUN begins with the ARGs in effect.
# expect: history "RUN |1 A=one /bin/sh -c echo $A > /v # buildkit"
FROM busybox
ARG A=one
RUN echo $A > /v
