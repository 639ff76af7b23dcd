# STOPSIGNAL is kept as it is written.
# expect: config StopSignal "SIGQUIT"
FROM scratch AS base
STOPSIGNAL 9
FROM base
STOPSIGNAL SIGQUIT
