# Of several CMD the last one counts.
# expect: config Cmd ["two"]
FROM scratch
CMD ["one"]
CMD ["two"]
