# NAME.dockerignore beside a Dockerfile called NAME holds instead of .dockerignore.
# expect: file /a/ignored.log
# expect: absent /a/folder
# expect: file /a/plain.txt
FROM scratch
COPY . /a/
