# --from takes files of a named context.
# args: --build-context other={context}/folder
# expect: file /one.txt "one\n"
FROM scratch
COPY --from=other one.txt /
