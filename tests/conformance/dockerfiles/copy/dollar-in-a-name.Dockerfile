# A backslash keeps a dollar sign from being a variable.
# expect: file /$dollar.txt "dollar\n"
FROM scratch
COPY \$dollar.txt /
