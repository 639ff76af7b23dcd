FROM busybox
ENTRYPOINT ["/bin/echo", "one"]
CMD ["two", "three"]
