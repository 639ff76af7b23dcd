# FROM scratch without a step is an image without layers.
# expect: layers 0
FROM scratch
