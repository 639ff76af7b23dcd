# check=error=true
# With check=error=true a warning ends the build.
# expect: fails FromAsCasing at "FROM scratch as x"
FROM scratch as x
