# --target of a stage that isn't there names the one that it resembles.
# args: --target biuld
# expect: fails "did you mean build" at "FROM scratch AS build"
FROM scratch AS build
