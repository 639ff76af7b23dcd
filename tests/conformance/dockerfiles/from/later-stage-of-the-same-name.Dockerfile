# Of two stages with one name the last above counts.
# expect: file /f "plain\n"
FROM scratch AS twice
COPY script.sh /f
FROM scratch AS twice
COPY plain.txt /f
FROM scratch
COPY --from=twice /f /f
