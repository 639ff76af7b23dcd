# A directive behind a comment is a comment.
# expect: config Labels {"long": "onetwo"}
# escape=`
FROM scratch
LABEL long=one\
two
