# Names of files may have spaces, line ends and any bytes.
# expect: file "/a b"
# expect: file "/line\nend"
# expect: file /ü
FROM busybox
RUN touch '/a b' "$(printf '/line\nend')" /ü
