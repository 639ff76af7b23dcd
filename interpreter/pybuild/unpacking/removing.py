"""Removes and measures trees that nobody is to be trusted to have made."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from pybuild.files.safepath import Root
from pybuild.files.trees import join

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_PATH = 16 * 1024
_BLOCK = 512


def remove(path: Path) -> None:
    """Remove what is at `path`, and all below it. Raises OSError; nothing there is no error."""
    with suppress(FileNotFoundError):
        parent = os.open(path.parent, _FOLDER & ~os.O_NOFOLLOW)
        try:
            remove_name(parent, os.fsencode(path.name))
        finally:
            os.close(parent)


def clear(path: Path) -> None:
    """Remove all that is in the folder `path`."""
    folder = os.open(path, _FOLDER)
    try:
        clear_folder(folder)
    finally:
        os.close(folder)


def clear_folder(folder: int) -> None:
    """Remove all that is in an open folder."""
    with os.scandir(folder) as found:
        items = list(found)
    for item in items:
        remove_name(folder, os.fsencode(item.name))


def remove_name(parent: int, name: bytes) -> None:
    """Remove what has this name in an open folder, and all below it. Raises OSError."""
    if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
        os.unlink(name, dir_fd=parent)
        return
    _empty(os.open(name, _FOLDER, dir_fd=parent))
    os.rmdir(name, dir_fd=parent)


def _empty(here: int) -> None:
    """Remove all in the folder `here`, and close it.

    The way goes down by name and up by ``..``: two descriptors and short paths do for any
    depth, and a full disk is no hindrance.
    """
    above: list[tuple[tuple[int, int], bytes]] = []
    try:
        pending = [_without_files(here)]
        while pending:
            if pending[-1]:
                name = pending[-1].pop()
                inner = os.open(name, _FOLDER, dir_fd=here)
                above.append((_identity(here), name))
                os.close(here)
                here = inner
                pending.append(_without_files(here))
                continue
            pending.pop()
            if above:
                identity, name = above.pop()
                outer = os.open(b"..", _FOLDER, dir_fd=here)
                os.close(here)
                here = outer
                if _identity(here) != identity:
                    raise OSError(errno.EBUSY, "a folder was moved while it was removed")
                os.rmdir(name, dir_fd=here)
    finally:
        os.close(here)


def _identity(folder: int) -> tuple[int, int]:
    status = os.fstat(folder)
    return status.st_dev, status.st_ino


def _without_files(folder: int) -> list[bytes]:
    """Remove all in `folder` but folders, whose names are returned."""
    folders = []
    with os.scandir(folder) as found:
        items = list(found)
    for item in items:
        if item.is_dir(follow_symlinks=False):
            folders.append(os.fsencode(item.name))
        else:
            os.unlink(item.name, dir_fd=folder)
    return folders


class Allocated:
    """Counts bytes on disk, those of hard links once."""

    def __init__(self) -> None:
        self.size = 0
        self._linked: set[tuple[int, int]] = set()

    def add(self, status: os.stat_result) -> None:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            inode = status.st_dev, status.st_ino
            if inode in self._linked:
                return
            self._linked.add(inode)
        self.size += status.st_blocks * _BLOCK


def measure(path: Path) -> int:
    """The bytes that the folder `path` and all below it take; see `Workers.measure`."""
    total = Allocated()
    try:
        root = Root(path)
    except OSError:
        return 0
    with root:
        total.add(root.status(b"").status)
        pending = [b""]
        while pending:
            folder = pending.pop()
            try:
                items = root.listed(folder, with_xattrs=False)
            except OSError:
                continue
            for item in items:
                total.add(item.status)
                inner = join(folder, item.name)
                if stat.S_ISDIR(item.status.st_mode) and len(inner) <= _MAX_PATH:
                    pending.append(inner)
    return total.size
