# The history line of a COPY has the flags that change files.
# expect: history "COPY --chown=1:2 --chmod=600 plain.txt /f # buildkit"
FROM scratch
COPY --chown=1:2 --chmod=600 plain.txt /f
