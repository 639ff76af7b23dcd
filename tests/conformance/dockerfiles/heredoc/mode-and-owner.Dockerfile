# --chmod and --chown hold for heredocs.
# expect: mode /f 0711
# expect: owner /f 2:3
FROM scratch
COPY --chmod=711 --chown=2:3 <<EOF /f
#!/bin/sh
EOF
