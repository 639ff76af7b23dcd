# An archive is unpacked into a folder of the destination's name, with or without a slash at its end.
# expect: folder /x
# expect: file /x/top "top\n"
FROM scratch
ADD archive.tar /x
