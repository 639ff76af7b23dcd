FROM busybox
ARG WHO=arg
ENV WHO=env
ARG WHO=again
RUN echo $WHO > /who
