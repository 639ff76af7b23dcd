# A heredoc without its last line is refused.
# expect: fails EOF at "COPY <<EOF"
FROM scratch
COPY <<EOF /f
text
