# ${x:?message} ends the build with the message if x is unset or empty.
# expect: fails "give it" at "LABEL a="
FROM scratch
LABEL a="${none:?give it}"
