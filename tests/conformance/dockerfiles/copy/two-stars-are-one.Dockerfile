# Without --parents ** is no more than *.
# expect: file /x/one.txt
# expect: absent /x/deep.txt
FROM scratch
COPY folder/**.txt /x/
