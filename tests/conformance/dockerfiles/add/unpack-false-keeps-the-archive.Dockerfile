# With --unpack=false ADD copies an archive as it is.
# expect: file /x/archive.tar
# expect: absent /x/top
FROM scratch
ADD --unpack=false archive.tar /x/
