# A trigger doesn't run in its own stage, and is kept as written.
# expect: absent /triggered
# expect: config OnBuild ["RUN echo   $x > /triggered", "USER 1"]
FROM busybox
ONBUILD RUN echo   $x > /triggered
ONBUILD USER 1
