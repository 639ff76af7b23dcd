FROM busybox
RUN mkdir -p /t/a/b && echo 1 > /t/a/b/f && echo 2 > /t/g
RUN rm -r /t/a && rm /t/g && mkdir /t/a && echo new > /t/a/n
RUN rm /etc/group
