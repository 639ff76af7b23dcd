"""Folders small enough to be removed at once, as overlayfs leaves after steps that change nothing."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST = 8  # in one folder; that of a step has less
_DEEPEST = 8


def remove_small(folder: Path) -> bool:
    """Remove `folder` if little is in it and this process's user may; whether it is gone.

    Of one that isn't, what is in it may be.
    """
    return _removed(os.fspath(folder), None, _DEEPEST)


def _removed(name: str, parent: int | None, depth: int) -> bool:
    if depth == 0:
        return False
    try:
        fd = _opened(name, parent)
        try:
            with os.scandir(fd) as entries:
                inner = list(islice(entries, _MOST + 1))
            if len(inner) > _MOST:
                return False
            for entry in inner:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=fd)
                elif not _removed(entry.name, fd, depth - 1):
                    return False
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _opened(name: str, parent: int | None) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:
        if parent is None:
            raise
        os.chmod(name, 0o700, dir_fd=parent)  # overlayfs lets nobody but root into its own
        return os.open(name, _FOLDER, dir_fd=parent)
