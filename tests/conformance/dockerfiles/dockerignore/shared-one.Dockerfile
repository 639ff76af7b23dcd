# What .dockerignore of the context excludes isn't copied, but for what a later ! takes back.
# expect: absent /a/ignored.log
# expect: absent /a/folder/ignored.log
# expect: file /a/folder/sub/kept.log "re-included\n"
FROM scratch
COPY . /a/
