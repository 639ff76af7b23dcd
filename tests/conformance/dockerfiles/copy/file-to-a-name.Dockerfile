# A destination without a slash is the file's new name; missing folders above it are made.
# expect: file /a/b/c "plain\n"
# expect: mode /a/b 0755
# expect: owner /a 0:0
FROM scratch
COPY plain.txt /a/b/c
