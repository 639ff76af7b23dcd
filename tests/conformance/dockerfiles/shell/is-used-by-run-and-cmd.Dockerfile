# SHELL is what runs commands in shell form below it, and it is kept in the config.
# expect: config Shell ["/bin/sh", "-ec"]
# expect: config Cmd ["/bin/sh", "-ec", "echo x"]
# expect: config Entrypoint ["/bin/sh", "-ec", "exec y"]
# expect: history "RUN /bin/sh -ec true # buildkit"
FROM busybox
SHELL ["/bin/sh", "-ec"]
RUN true
CMD echo x
ENTRYPOINT exec y
