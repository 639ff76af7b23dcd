# --add-host is in /etc/hosts for the steps, and not in the image.
# args: --add-host one.example:192.0.2.1
# expect: file /v "192.0.2.1\n"
# expect: absent /etc/hosts
FROM busybox
RUN awk '$2 == "one.example" { print $1 }' /etc/hosts > /v
