"""Which descriptors this process has open; those that other tests left to the collector aside."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def open_below(folder: Path) -> list[str]:
    """The paths in `folder` that are open, `folder` among them."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names alone
        with suppress(FileNotFoundError):  # that of this very listing, or of another thread
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115 - as above
    top = os.fspath(folder)
    return sorted(path for path in found if path == top or path.startswith(f"{top}/"))
