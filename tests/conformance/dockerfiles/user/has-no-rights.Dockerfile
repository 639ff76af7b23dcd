# A step of an ordinary user can't write where root alone may.
# expect: file /tmp/v "refused\n"
FROM busybox
USER 1234
RUN { touch /etc/new 2>/dev/null || echo refused; } > /tmp/v
