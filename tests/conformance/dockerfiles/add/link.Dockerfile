# ADD --link makes a layer of its own, with the same files.
# expect: file /x/plain.txt "plain\n"
# expect: file /x/script.sh
# expect: layers 2
FROM scratch
ADD --link plain.txt /x/
ADD --link script.sh /x/
