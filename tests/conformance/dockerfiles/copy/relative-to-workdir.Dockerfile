# A relative destination begins at WORKDIR.
# expect: file /w/x/plain.txt
# expect: file /w/script.sh
FROM scratch
WORKDIR /w
COPY plain.txt x/
COPY script.sh .
