# escape=x
# Nothing but \ and ` can be the escape character.
# expect: fails escape at "# escape=x"
FROM scratch
