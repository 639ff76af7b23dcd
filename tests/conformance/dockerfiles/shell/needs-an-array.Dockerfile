# SHELL is a JSON array or nothing.
# expect: fails SHELL at "SHELL /bin/bash"
FROM scratch
SHELL /bin/bash
