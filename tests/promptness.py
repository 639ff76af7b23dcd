"""What a test takes for prompt."""

from __future__ import annotations

AT_ONCE = 4.0
"""Seconds until a cancelled build has ended: two are promised, a busy machine gets twice that."""
