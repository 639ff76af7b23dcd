"""A private temporary folder of one backend, which a later build removes if this one is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

_PREFIX = "pybuild-work-"
_LOCK = "lock"


class WorkFolder:
    """A new folder that only this user may enter; a context manager that removes it.

    A lock in it, which the kernel drops with the process, tells that it is in use. Making
    one removes those of the same user that aren't in use any more. It lies in `parent`, by
    default where temporary files do.
    """

    def __init__(self, parent: Path | None = None) -> None:
        place = parent or Path(tempfile.gettempdir())
        _sweep(place)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        unlocked = self.path / "unlocked"
        self._lock = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        _try_lock(self._lock)
        # under its name it is locked from the start: another process may be sweeping
        unlocked.rename(self.path / _LOCK)

    def new_folder(self, name: str) -> Path:
        """A new folder in it, private as well, whose name begins with `name`."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _sweep(place: Path) -> None:
    user = getattr(os, "geteuid", lambda: 0)()
    for folder in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            # a link of that name isn't ours, whatever it leads to
            if folder.is_symlink() or folder.lstat().st_uid != user:
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if _try_lock(lock):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _try_lock(descriptor: int) -> bool:
    """Lock the file unless another process, or another descriptor, has it locked."""
    try:
        import fcntl  # noqa: PLC0415 - only Unix has it
    except ImportError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
