# FROM has no flag but --platform.
# expect: fails "--plat" at "FROM --plat=x"
FROM --plat=x scratch
