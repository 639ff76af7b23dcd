# A dollar sign that no name follows is itself.
# expect: config Labels {"a": "$", "b": "1$ 2"}
FROM scratch
LABEL a=$ b="1$ 2"
