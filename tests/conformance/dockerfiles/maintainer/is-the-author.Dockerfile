# MAINTAINER is the author in the image's config.
# expect: author "somebody <s@host.example>"
FROM scratch
MAINTAINER somebody <s@host.example>
