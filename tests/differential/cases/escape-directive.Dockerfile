# escape=`
FROM busybox
RUN echo one `
    two > /escaped
ENV P=a\b
