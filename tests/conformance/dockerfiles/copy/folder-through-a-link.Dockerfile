# The destination may be a link to a folder: the contents go where it leads.
# expect: link /a real
# expect: file /real/one.txt
FROM busybox
RUN mkdir /real && ln -s real /a
COPY folder /a
