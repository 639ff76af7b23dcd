# Braces tell where a name ends; without them it goes as far as it can.
# expect: config Labels {"a": "v_x", "b": "[]", "c": "v-x"}
FROM scratch
ENV set=v
LABEL a=${set}_x b=[$set_x] c=$set-x
