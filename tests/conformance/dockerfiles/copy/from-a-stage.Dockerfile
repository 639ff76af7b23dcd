# --from takes files of a stage by its name, in any case, or by its number.
# expect: file /a/plain.txt
# expect: file /b/plain.txt
FROM scratch AS Build
COPY plain.txt /
FROM scratch
COPY --from=build plain.txt /a/
COPY --from=0 /plain.txt /b/
