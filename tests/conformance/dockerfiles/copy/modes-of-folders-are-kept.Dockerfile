# The folders below a copied one keep their modes.
# expect: mode /a/sub 0750
# expect: mode /a/two.txt 0640
FROM scratch
COPY folder /a
