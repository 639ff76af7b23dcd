# ADD --chown gives everything it unpacks to that owner.
# expect: owner /x/top 1:2
# expect: owner /x/dir/two 1:2
FROM scratch
ADD --chown=1:2 archive.tar /x/
