# --exclude holds for the files that a wildcard matches too.
# expect: file /x/plain.txt
# expect: absent /x/readonly.txt
FROM scratch
COPY --exclude=read* *.txt /x/
