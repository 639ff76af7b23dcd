# folder/. are the contents of the folder, as without the dot.
# expect: file /a/one.txt
FROM scratch
COPY folder/. /a/
