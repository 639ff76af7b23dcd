# FROM and MAINTAINER can't be triggers.
# expect: fails FROM at "ONBUILD FROM"
FROM scratch
ONBUILD FROM busybox
