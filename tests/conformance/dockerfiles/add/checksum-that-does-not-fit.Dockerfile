# ADD --checksum refuses what has another digest.
# args: --build-arg WEB={web}
# expect: fails digest at "ADD --checksum"
FROM scratch
ARG WEB
ADD --checksum=sha256:0000000000000000000000000000000000000000000000000000000000000000 $WEB/file.txt /f
