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


def wait_for_the_clock(folder: Path) -> None:
    """Until the file system's clock, which ticks a few hundred times a second, has gone on."""
    probe = folder.parent / "clock"
    probe.touch()
    began = probe.lstat().st_ctime_ns
    while probe.lstat().st_ctime_ns == began:
        probe.touch()
        time.sleep(0)
