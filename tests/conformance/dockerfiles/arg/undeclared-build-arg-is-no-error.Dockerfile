# A build arg that nothing declares is only warned of.
# args: --build-arg NOBODY=asked
# expect: config Labels {"v": "none"}
FROM scratch
LABEL v=${NOBODY:-none}
