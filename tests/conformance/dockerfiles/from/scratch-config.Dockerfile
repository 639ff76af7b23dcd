# A stage from scratch begins with the usual PATH, in /.
# expect: config Env ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
# expect: config WorkingDir "/"
FROM scratch
