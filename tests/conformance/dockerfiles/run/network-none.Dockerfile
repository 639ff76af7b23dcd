# With --network=none there is no interface but loopback.
# expect: file /v "lo\n"
FROM busybox
RUN --network=none ls /sys/class/net | grep -v -e tunl -e sit -e gre -e erspan -e ip_vti -e ip6 > /v
