# An ARG above the first FROM can be used in FROM.
# expect: config Cmd ["sh"]
ARG BASE=busybox
FROM $BASE
