FROM busybox
ONBUILD RUN echo triggered > /triggered
ONBUILD COPY . /src
