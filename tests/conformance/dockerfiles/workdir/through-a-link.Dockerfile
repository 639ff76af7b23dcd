# WORKDIR follows links, and makes what is missing behind them.
# expect: link /lnk real
# expect: folder /real/sub
# expect: config WorkingDir "/lnk/sub"
FROM busybox
RUN mkdir /real && ln -s real /lnk
WORKDIR /lnk/sub
