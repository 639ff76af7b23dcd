# COPY --from takes files alone: no variable and no label.
# expect: config Labels null
# expect: config Env ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
FROM scratch AS build
ENV A=1
LABEL a=1
COPY plain.txt /
FROM scratch
COPY --from=build plain.txt /
