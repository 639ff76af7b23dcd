# --chmod in octal is the mode of all files and folders that are copied.
# expect: mode /a/one.txt 0711
# expect: mode /a/sub 0711
# expect: mode /a/sub/deep.txt 0711
FROM scratch
COPY --chmod=711 folder /a
