# Files keep their modes, set-user-id bits and times; root owns them.
# expect: mode /a/readonly.txt 0444
# expect: mode /a/script.sh 0755
# expect: mode /a/setuid.sh 4755
# expect: owner /a/script.sh 0:0
# expect: time /a/script.sh 1600000000
FROM scratch
COPY readonly.txt script.sh setuid.sh /a/
