# VOLUME makes no folder.
# expect: absent /a
# expect: layers 0
FROM scratch
VOLUME /a
