# <<- takes tabs off the beginning of lines, and none else.
# expect: file /f "one\n two\n"
FROM scratch
COPY <<-EOF /f
		one
	 two
	EOF
