# A variable may be empty.
# expect: config Env ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A="]
# expect: config Labels {"v": "[]"}
FROM scratch
ENV A=
LABEL v=[${A-unset}]
