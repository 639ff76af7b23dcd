FROM busybox
RUN mkdir /l && echo x > /l/a && ln /l/a /l/b && ln -s a /l/c && ln -s /nowhere /l/d
