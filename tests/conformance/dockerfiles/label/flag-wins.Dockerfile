# --label wins over LABEL.
# args: --label a=flag --label c=3
# expect: config Labels {"a": "flag", "b": "file", "c": "3"}
FROM scratch
LABEL a=file b=file
