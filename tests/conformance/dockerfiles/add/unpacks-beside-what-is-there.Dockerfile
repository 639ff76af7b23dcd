# Unpacking merges into an existing folder: files that the archive doesn't name stay.
# expect: file /x/dir/plain.txt "plain\n"
# expect: file /x/dir/one "archived one\n"
FROM scratch
COPY plain.txt /x/dir/
ADD archive.tar /x/
