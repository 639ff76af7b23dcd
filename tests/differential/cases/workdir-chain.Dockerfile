FROM busybox
WORKDIR /one
WORKDIR two
WORKDIR ../three
ENV D=four
WORKDIR $D
RUN pwd > here
