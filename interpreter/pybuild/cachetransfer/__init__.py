"""Caches that travel: steps and cache mounts of other machines, at a registry or in a folder.

Loaded by the first build that asks for one.
"""
