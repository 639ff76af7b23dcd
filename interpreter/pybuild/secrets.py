"""A value that a build may use and must not keep."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Secret:
    """What ``--secret`` gives: its bytes, which no text of it shows."""

    value: bytes = field(repr=False)
