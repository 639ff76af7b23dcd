# A stage that declares SOURCE_DATE_EPOCH sees the time that the image gets.
# expect: config Labels {"v": "1700000000"}
FROM scratch
ARG SOURCE_DATE_EPOCH
LABEL v=$SOURCE_DATE_EPOCH
