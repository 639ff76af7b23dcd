# A mode above 07777 is refused.
# expect: fails chmod at "COPY --chmod=10000"
FROM scratch
COPY --chmod=10000 plain.txt /f
