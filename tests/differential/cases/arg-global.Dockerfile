ARG TAG=latest
ARG UNUSED=global
FROM busybox:${TAG}
ARG TAG
ARG UNUSED=local
RUN echo "$TAG $UNUSED" > /args
