# Of an ENV and an ARG of one name the later line wins in the steps below.
# expect: file /v "arg env\n"
FROM busybox
ENV A=env
ARG A=arg
ARG B=arg
ENV B=env
RUN echo $A $B > /v
