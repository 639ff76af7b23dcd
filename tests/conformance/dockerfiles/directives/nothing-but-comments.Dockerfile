# A file without instructions is refused.
# expect: fails "no instructions" at "#"
