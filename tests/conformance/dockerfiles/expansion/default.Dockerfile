# ${x:-w} is w if x is unset or empty, ${x-w} only if it is unset.
# expect: config Labels {"a": "w", "b": "w", "c": "w", "d": "[]", "e": "v"}
FROM scratch
ENV set=v empty=
LABEL a=${none:-w} b=${empty:-w} c=${none-w} d=[${empty-w}] e=${set:-w}
