#!/bin/sh
if [ -z "$1" ]; then
    echo "greet: whom?" >&2
    exit 2
fi
echo "$GREETING, $1! I am $(id -un)."
