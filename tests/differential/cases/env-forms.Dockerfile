FROM busybox
ENV A=1 B="two words" C=three\ words
ENV D the rest of the line
ENV E=${A:-x}${NONE:-default}${B:+alt}
RUN echo "$A|$B|$C|$D|$E" > /env
