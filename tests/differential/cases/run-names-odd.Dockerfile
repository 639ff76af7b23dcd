FROM busybox
RUN mkdir /odd && touch "/odd/new
line" "/odd/tab	tab" /odd/ünïcode "/odd/back\\slash" "/odd/$(printf '%0200d' 7)"
