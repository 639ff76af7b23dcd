# A program that the image doesn't have fails the step.
# expect: fails "/no/such/program" at "RUN ["
FROM busybox
RUN ["/no/such/program"]
