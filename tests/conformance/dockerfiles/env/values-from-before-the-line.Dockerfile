# All values of one ENV are expanded with what was set before it.
# expect: config Env ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "abc=bye", "def=hello", "ghi=bye"]
FROM scratch
ENV abc=hello
ENV abc=bye def=$abc
ENV ghi=$abc
