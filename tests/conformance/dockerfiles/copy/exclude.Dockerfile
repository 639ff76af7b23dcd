# What --exclude matches isn't copied; it may stand more than once.
# expect: file /x/a1.txt
# expect: absent /x/a2.txt
# expect: absent /x/b1.md
FROM scratch
COPY --exclude=*.md --exclude=a2.* glob /x/
