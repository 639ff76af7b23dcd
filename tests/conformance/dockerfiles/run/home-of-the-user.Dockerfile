# HOME is that of USER in /etc/passwd.
# expect: file /tmp/v "/var/www\n"
FROM busybox
USER www-data
RUN echo $HOME > /tmp/v
