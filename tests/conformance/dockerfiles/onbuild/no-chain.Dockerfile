# A trigger can't be a trigger.
# expect: fails ONBUILD at "ONBUILD ONBUILD"
FROM scratch
ONBUILD ONBUILD RUN true
