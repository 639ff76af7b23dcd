# An empty path is refused.
# expect: fails VOLUME at "VOLUME"
FROM scratch
VOLUME [""]
