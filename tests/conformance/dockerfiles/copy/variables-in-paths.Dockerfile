# Sources and destinations are expanded.
# expect: file /to/one.txt
FROM scratch
ENV FROM=folder TO=/to
COPY $FROM/one.txt ${TO}/
