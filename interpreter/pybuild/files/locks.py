"""Locks on files: held by one process, dropped by the kernel when that dies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05


def try_lock(descriptor: int) -> bool:
    """Lock an open file unless another descriptor, in whatever process, has it locked."""
    import fcntl  # noqa: PLC0415 - Windows has none

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def holding(path: Path, while_waiting: Callable[[], object]) -> Iterator[None]:
    """Hold the lock of the file `path`, which exists only meanwhile.

    `while_waiting` is called many times a second until the lock is there; what it raises
    ends the waiting.
    """
    pause = _SHORTEST_PAUSE
    while (descriptor := _lock_once(path)) is None:
        while_waiting()
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
    try:
        yield
    finally:
        # as long as it has the name it is locked: nobody else removes or locks it
        path.unlink(missing_ok=True)
        os.close(descriptor)


def remove_unheld(folder: Path, pattern: str = "*") -> None:
    """Remove the locks in `folder` with such names that died with their holders."""
    for path in folder.glob(pattern):
        descriptor = _lock_once(path)
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _lock_once(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # whoever had it locked may have removed it since it was opened
        if try_lock(descriptor) and os.path.samestat(os.fstat(descriptor), path.lstat()):
            return descriptor
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
