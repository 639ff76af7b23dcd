# ADD --exclude leaves out what matches, as COPY does.
# expect: file /x/a1.txt "a1\n"
# expect: absent /x/b1.md
FROM scratch
ADD --exclude=*.md glob /x/
