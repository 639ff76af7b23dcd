# escape=`
# With escape=` a backslash is an ordinary character, and lines are continued by `.
# expect: config Labels {"path": "c:\\windows", "long": "onetwo"}
FROM scratch
LABEL path=c:\windows
LABEL long=one`
two
