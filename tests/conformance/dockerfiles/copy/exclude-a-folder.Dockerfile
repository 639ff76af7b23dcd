# --exclude of a folder excludes all below it; paths begin at the source.
# expect: file /x/one.txt
# expect: absent /x/sub
FROM scratch
COPY --exclude=sub folder /x/
