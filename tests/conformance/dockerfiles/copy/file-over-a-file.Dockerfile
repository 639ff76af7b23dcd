# A file replaces another, with its mode.
# expect: file /f "#!/bin/sh\necho script\n"
# expect: mode /f 0755
FROM scratch
COPY readonly.txt /f
COPY script.sh /f
