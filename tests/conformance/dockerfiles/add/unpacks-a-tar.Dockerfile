# ADD unpacks a tar archive of the context into the destination; members keep owner, mode and time.
# expect: file /x/dir/one "archived one\n"
# expect: owner /x/dir/two 42:43
# expect: mode /x/dir/two 4755
# expect: link /x/dir/link one
# expect: mode /x/top 0600
# expect: time /x/top 1600000000
# expect: file /x/dir/hard "archived one\n"
# expect: absent /x/archive.tar
FROM scratch
ADD archive.tar /x/
