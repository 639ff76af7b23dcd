# What is no signal is refused.
# expect: fails SIGNOT at "STOPSIGNAL SIGNOT"
FROM scratch
STOPSIGNAL SIGNOT
