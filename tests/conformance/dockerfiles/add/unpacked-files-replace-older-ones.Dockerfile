# A member of an archive replaces the file of its name.
# expect: file /x/top "top\n"
# expect: mode /x/top 0600
FROM scratch
COPY plain.txt /x/top
ADD archive.tar /x/
