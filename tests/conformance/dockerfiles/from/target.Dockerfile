# --target ends the build at that stage; what stands below isn't built.
# args: --target ONE
# expect: config Labels {"a": "1"}
FROM scratch AS one
LABEL a=1
FROM one
RUN ["/no/such/program"]
