FROM scratch
COPY plain.txt /
COPY folder /folder
