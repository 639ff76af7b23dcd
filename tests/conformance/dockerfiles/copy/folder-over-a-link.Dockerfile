# A folder below the copied one never replaces a link.
# expect: fails "/a/sub" at "COPY folder /a"
FROM busybox
RUN mkdir /a && ln -s /tmp /a/sub
COPY folder /a
