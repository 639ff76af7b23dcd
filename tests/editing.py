"""Changes of files that are hard to see, made as soon as they can be seen at all."""

from __future__ import annotations

import os
import time
from pathlib import Path


def same_size(path: Path) -> None:
    """Give the file another content of the same size."""
    path.write_bytes(path.read_bytes()[::-1])


def same_size_and_time(path: Path) -> None:
    """As :func:`same_size`, and put its modification time back."""
    status = path.lstat()
    same_size(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def edit(path: Path, how: str, number: int, aside: Path) -> None:
    """Write, move to `aside`, drop, or put back: only the inode tells. What isn't there is written.

    Each `number` gives another content.
    """
    wait_for_the_clock(path.parent)
    if how == "write" or not path.exists():
        path.write_bytes(b"%04d" % number)
    elif how == "move":
        path.replace(aside)
    elif how == "drop":
        path.unlink()
    else:
        same_size_and_time(path)


def wait_for_the_clock(folder: Path) -> None:
    """Until the file system's clock, which ticks a few hundred times a second, has gone on."""
    probe = folder.parent / "clock"
    probe.touch()
    began = probe.lstat().st_ctime_ns
    while probe.lstat().st_ctime_ns == began:
        probe.touch()
        time.sleep(0)
