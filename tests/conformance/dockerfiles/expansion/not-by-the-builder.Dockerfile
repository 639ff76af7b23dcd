# The text of RUN, CMD and ENTRYPOINT is left to the shell.
# expect: config Cmd ["/bin/sh", "-c", "echo $set"]
# expect: config Entrypoint ["$set"]
FROM scratch
ENV set=v
ENTRYPOINT ["$set"]
CMD echo $set
