FROM busybox
COPY --chmod=0751 plain.txt /a/plain.txt
COPY --chmod=700 folder /b/
