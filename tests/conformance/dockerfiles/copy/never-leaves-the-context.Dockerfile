# Sources begin at the root of the context, however many ../ they begin with.
# expect: file /a/plain.txt "plain\n"
# expect: file /b/one.txt "one\n"
FROM scratch
COPY ../../plain.txt /a/
COPY /folder/../folder/one.txt /b/
