"""A page about one build: HTML without anything from outside. Loaded when one is asked for."""
