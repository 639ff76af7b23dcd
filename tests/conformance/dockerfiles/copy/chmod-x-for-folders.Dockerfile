# In symbolic modes X is for folders, and for files that somebody may execute.
# expect: mode /a/sub 0755
# expect: mode /a/two.txt 0644
# expect: mode /script.sh 0755
FROM scratch
COPY --chmod=u=rwX,go=rX folder /a
COPY --chmod=u=rwX,go=rX script.sh /
