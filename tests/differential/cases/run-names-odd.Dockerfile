FROM busybox
RUN mkdir /odd && cd /odd && touch "$(printf 'new\nline')" "tab	tab" ünïcode 'back\slash' \
    "$(printf '%0200d' 7)" "$(printf 'bytes\377\376')"
