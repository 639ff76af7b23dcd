# ADD --checksum lets through what has that digest.
# args: --build-arg WEB={web}
# expect: file /f "from the web\n"
FROM scratch
ARG WEB
ADD --checksum=sha256:451f3e8714562111c7fc96b639f49f404507d4436dcd0ec3d539defcc2577d86 $WEB/file.txt /f
