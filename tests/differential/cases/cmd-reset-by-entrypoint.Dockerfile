FROM busybox
CMD ["lost"]
ENTRYPOINT exec top -b
