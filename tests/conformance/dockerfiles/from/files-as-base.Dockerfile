# A named context of files can be a base.
# args: --build-context files={context}/folder
# expect: file /one.txt "one\n"
# expect: file /plain.txt
FROM files
COPY plain.txt /
