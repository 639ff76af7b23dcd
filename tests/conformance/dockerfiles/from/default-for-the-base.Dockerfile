# A variable without a value may have a default in FROM.
# expect: config Cmd ["sh"]
ARG BASE
FROM ${BASE:-busybox}
