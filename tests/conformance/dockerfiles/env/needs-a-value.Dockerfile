# A name alone isn't enough for ENV.
# expect: fails "ENV A has no value" at "ENV A"
FROM scratch
ENV A
