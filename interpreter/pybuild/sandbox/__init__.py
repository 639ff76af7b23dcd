"""Runs a process on mounted files: `client` is what callers use, `zygote` a program of its own."""
