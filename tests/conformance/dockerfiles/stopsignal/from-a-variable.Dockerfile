# STOPSIGNAL is expanded.
# expect: config StopSignal "15"
FROM scratch
ARG SIGNAL=15
STOPSIGNAL $SIGNAL
