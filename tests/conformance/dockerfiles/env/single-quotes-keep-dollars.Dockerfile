# Nothing is expanded inside of single quotes.
# expect: config Env ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=$PATH", "B=$PATH"]
FROM scratch
ENV A='$PATH' B=\$PATH
