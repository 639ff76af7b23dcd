# Each archive that a wildcard matches is unpacked.
# expect: file /x/top "top\n"
# expect: absent /x/archive.tar.gz
# expect: absent /x/archive.tar.xz
FROM scratch
ADD archive.tar.[gx]z /x/
