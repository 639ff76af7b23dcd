# A source that is itself a symbolic link is what it leads to, inside of the context.
# expect: file /f "target\n"
# expect: file /d/one.txt "one\n"
FROM scratch
COPY links/relative /f
COPY links/folder /d/
