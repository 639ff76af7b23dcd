# What is no number is refused.
# expect: fails "web" at "EXPOSE web"
FROM scratch
EXPOSE web
