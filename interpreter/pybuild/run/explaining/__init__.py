"""Records of builds, and what tells a missed step from its like in an earlier build.

Loaded once a step of a build misses; a build that finds all its steps needs none of it.
"""
