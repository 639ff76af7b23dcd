FROM busybox
RUN mkdir /k && touch /k/file && mkdir /k/dir && touch /k/dir/x && ln -s file /k/link
RUN rm /k/file && mkdir /k/file && rm -r /k/dir && echo d > /k/dir && rm /k/link && echo l > /k/link
