# The lines are expanded, unless the word is quoted.
# expect: file /a/plain "v $set\n"
# expect: file /a/quoted "$set \\$set\n"
FROM scratch
ENV set=v
COPY <<plain /a/
$set \$set
plain
COPY <<"quoted" /a/
$set \$set
quoted
