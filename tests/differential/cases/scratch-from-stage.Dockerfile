FROM busybox AS tools
FROM scratch
COPY --from=tools /bin/busybox /bin/sh
RUN echo made > /made
CMD ["/bin/sh"]
