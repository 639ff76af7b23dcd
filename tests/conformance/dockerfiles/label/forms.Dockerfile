# LABEL takes several name=value, quoted or not, on more than one line.
# expect: config Labels {"a": "1", "b.c": "two words", "d e": "x"}
FROM scratch
LABEL a=1 b.c="two words" \
      "d e"=x
