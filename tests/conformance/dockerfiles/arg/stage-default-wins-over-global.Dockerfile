# A default in the stage wins over the global default.
# expect: config Labels {"v": "stage"}
ARG A=global
FROM scratch
ARG A=stage
LABEL v=$A
