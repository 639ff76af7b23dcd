# A variable that is set again keeps its place in the list.
# expect: config Env ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=3", "B=2"]
FROM scratch
ENV A=1
ENV B=2
ENV A=3
