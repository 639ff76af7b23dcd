# In ENV NAME value all the rest of the line is the value.
# expect: config Env ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=one two=three"]
FROM scratch
ENV A one two=three
