# A step's environment has PATH, HOME and what the Dockerfile says, and nothing of the builder.
# expect: file /v "A=1\nHOME=/root\nPATH=/bin\n"
FROM busybox
ENV PATH=/bin A=1
RUN env | grep -v -e '^PWD=' -e '^SHLVL=' -e '^HOSTNAME=' -e '^OLDPWD=' | sort > /v
