# Double quotes expand, single ones don't; one kind inside of the other is text.
# expect: config Labels {"a": "v", "b": "$set", "c": "'v'", "d": "\"$set\""}
FROM scratch
ENV set=v
LABEL a="$set" b='$set' c="'$set'" d='"$set"'
