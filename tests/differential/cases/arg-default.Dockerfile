FROM busybox
ARG GREETING=hello
ARG NAME=${GREETING}-world
RUN echo "$GREETING $NAME" > /greeting
ENV SAID=$NAME
