# Archives inside of a folder that is added stay packed.
# expect: file /x/archive.tar
# expect: absent /x/top
FROM scratch
ADD . /x/
