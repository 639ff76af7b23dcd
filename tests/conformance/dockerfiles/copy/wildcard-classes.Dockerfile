# In sources [ ] stand for one of the characters in between, ^ for any other.
# expect: file /a/a1.txt
# expect: absent /a/a2.txt
# expect: file /b/b1.md
# expect: absent /b/a1.txt
FROM scratch
COPY glob/a[01].txt /a/
COPY glob/[^a\[]* /b/
