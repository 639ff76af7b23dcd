# Wildcards find files in a stage.
# expect: file /x/a1.txt
# expect: file /x/a2.txt
# expect: absent /x/b1.md
FROM scratch AS build
COPY glob /g
FROM scratch
COPY --from=build /g/a?.txt /x/
