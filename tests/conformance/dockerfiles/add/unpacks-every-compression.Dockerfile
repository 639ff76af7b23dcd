# ADD unpacks archives compressed by gzip, bzip2, xz and zstd.
# expect: file /gz/top "top\n"
# expect: file /bz2/top "top\n"
# expect: file /xz/top "top\n"
# expect: file /zst/top "top\n"
FROM scratch
ADD archive.tar.gz /gz/
ADD archive.tar.bz2 /bz2/
ADD archive.tar.xz /xz/
ADD archive.tar.zst /zst/
