# ADD --keep-git-dir adds .git too.
# args: --build-arg GIT={git}
# expect: file /g/greeting "from git\n"
# expect: folder /g/.git
FROM scratch
ARG GIT
ADD --keep-git-dir=true $GIT /g/
