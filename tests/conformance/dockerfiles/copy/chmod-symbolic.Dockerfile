# --chmod takes the symbolic modes of chmod(1), from the mode that a file has.
# expect: mode /plain.txt 0755
# expect: mode /readonly.txt 0440
FROM scratch
COPY --chmod=a+x,u+w plain.txt /
COPY --chmod=o-r readonly.txt /
