# Files that a step makes are as old as SOURCE_DATE_EPOCH says, older ones keep their time.
# expect: time /new 1700000000
# expect: time /old 1000000000
FROM busybox
RUN touch /new && touch -d @1000000000 /old
