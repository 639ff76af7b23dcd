FROM busybox
COPY folder/*.txt /txt/
COPY folder/o?e.txt folder/[st]* /mixed/
