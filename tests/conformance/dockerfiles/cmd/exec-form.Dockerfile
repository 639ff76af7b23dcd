# CMD as a JSON array is the command as it is.
# expect: config Cmd ["echo", "$HOME"]
FROM scratch
CMD ["echo", "$HOME"]
