# Modes, owners, links and special bits that a step sets are in the image.
# expect: mode /d 1777
# expect: mode /f 4711
# expect: owner /f 12:34
# expect: link /l ../f
# expect: owner /l 5:6
FROM busybox
RUN mkdir -m 1777 /d && touch /f && chown 12:34 /f && chmod 4711 /f && ln -s ../f /l && chown -h 5:6 /l
