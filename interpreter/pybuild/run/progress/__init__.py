"""Reporters that show a build: plain lines, a live terminal, or JSON lines."""
