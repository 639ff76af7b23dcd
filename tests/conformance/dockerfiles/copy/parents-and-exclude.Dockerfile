# --exclude holds with --parents too.
# expect: file /x/glob/a1.txt
# expect: absent /x/glob/b1.md
FROM scratch
COPY --parents --exclude=**/*.md glob /x/
