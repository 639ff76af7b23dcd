# ENV takes several NAME=value; quotes are taken off and an escaped space is one.
# expect: config Env ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=1", "B=two words", "C=two words", "D=it's"]
FROM scratch
ENV A=1 B="two words" C=two\ words D="it's"
