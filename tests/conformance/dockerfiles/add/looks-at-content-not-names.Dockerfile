# Whether ADD unpacks is decided by a file's content, not by its name.
# expect: file /x/top "top\n"
# expect: file /y/not-an-archive.tar.gz "this is text, whatever its name says\n"
FROM scratch
ADD archive.renamed /x/
ADD not-an-archive.tar.gz /y/
