# Behind # stand a branch and, after a colon, the folder of the repository that is added.
# args: --build-arg GIT={git}
# expect: file /g/in "below\n"
# expect: absent /g/greeting
FROM scratch
ARG GIT
ADD $GIT#main:sub /g/
