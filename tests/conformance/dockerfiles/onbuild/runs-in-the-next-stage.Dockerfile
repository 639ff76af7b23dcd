# A trigger runs right behind the FROM of a stage that builds on this one, and is gone then.
# expect: file /triggered "plain\n"
# expect: config OnBuild null
FROM scratch AS base
ONBUILD COPY plain.txt /triggered
FROM base
