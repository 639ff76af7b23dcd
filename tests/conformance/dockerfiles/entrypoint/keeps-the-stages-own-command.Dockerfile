# A CMD of the same stage stays, wherever it stands.
# expect: config Entrypoint ["/bin/app"]
# expect: config Cmd ["x"]
FROM busybox
CMD ["x"]
ENTRYPOINT ["/bin/app"]
