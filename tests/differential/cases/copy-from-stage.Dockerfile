FROM busybox AS build
RUN mkdir -p /out/bin && echo program > /out/bin/app && chmod 755 /out/bin/app && ln -s app /out/bin/link
FROM busybox
COPY --from=build /out /usr/local
COPY --from=0 /out/bin/app /single
