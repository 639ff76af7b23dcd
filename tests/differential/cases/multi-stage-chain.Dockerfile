FROM busybox AS base
ENV LEVEL=base
WORKDIR /srv
RUN echo base > base
FROM base AS middle
ENV LEVEL=middle
RUN echo $LEVEL > middle
FROM middle
RUN cat base middle > both
CMD ["cat", "both"]
