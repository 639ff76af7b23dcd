# Symbolic links inside of a copied folder are copied as links.
# expect: link /a/relative file
# expect: link /a/absolute /etc/passwd
# expect: link /a/dangling missing
FROM scratch
COPY links /a
