"""Reading what a pseudo-terminal shows, as a person at it would."""

from __future__ import annotations

import os
import select

_PATIENCE = 30
_SETTLED = 0.1


def read_until(terminal: int, awaited: bytes) -> bytes:
    """What the terminal with this descriptor shows, up to `awaited` or a bit more.

    The kernel passes it on in its own time, so one read may get half of what was written.
    """
    shown = b""
    while awaited not in shown and select.select([terminal], [], [], _PATIENCE)[0]:
        shown += os.read(terminal, 4096)
    return shown


def read_soon(terminal: int) -> bytes:
    """What is to be read, now or as soon as the kernel has passed it on; empty if nothing is."""
    return os.read(terminal, 4096) if select.select([terminal], [], [], _SETTLED)[0] else b""
