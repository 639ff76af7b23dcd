# A number stands for a stage above.
# expect: fails "stage index 1" at "COPY --from=1"
FROM scratch
COPY --from=1 /a /b
