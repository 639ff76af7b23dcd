# A named context stands in for the image of its name.
# args: --build-context standin={layout}
# expect: config Cmd ["sh"]
# expect: layers 1
FROM standin
