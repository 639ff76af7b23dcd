# Ports end at 65535.
# expect: fails "65536" at "EXPOSE 65536"
FROM scratch
EXPOSE 65536
