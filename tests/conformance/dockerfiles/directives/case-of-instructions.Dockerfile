# Instructions may be written in any case.
# expect: config Labels {"a": "b"}
from scratch
lAbEl a=b
