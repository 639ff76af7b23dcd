# ADD of a git repository copies the files of its commit, without .git.
# args: --build-arg GIT={git}
# expect: file /g/greeting "from git\n"
# expect: file /g/sub/in "below\n"
# expect: absent /g/.git
FROM scratch
ARG GIT
ADD $GIT /g/
