# COPY makes a file of a heredoc, with the name of its word, owned by root.
# expect: file /a/hello.txt "hello\n  world\n"
# expect: mode /a/hello.txt 0644
# expect: owner /a/hello.txt 0:0
FROM scratch
COPY <<hello.txt /a/
hello
  world
hello.txt
