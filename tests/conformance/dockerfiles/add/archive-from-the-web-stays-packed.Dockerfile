# An archive from the web isn't unpacked, unless --unpack asks for it.
# args: --build-arg WEB={web}
# expect: file /packed/archive.tar
# expect: absent /packed/top
# expect: file /unpacked/top "top\n"
FROM scratch
ARG WEB
ADD $WEB/archive.tar /packed/
ADD --unpack=true $WEB/archive.tar /unpacked/
