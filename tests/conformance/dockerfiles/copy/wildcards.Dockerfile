# In sources * and ? stand for characters of one name.
# expect: file /a/a1.txt
# expect: file /a/a2.txt
# expect: absent /a/b1.md
# expect: file /b/b1.md
# expect: absent /b/a1.txt
FROM scratch
COPY glob/a*.txt /a/
COPY glob/??.md /b/
