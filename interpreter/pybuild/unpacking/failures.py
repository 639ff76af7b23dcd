"""Errors of the system as those of the backend."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pybuild.errors import BackendFailed


@contextmanager
def translated(action: str, place: Path) -> Iterator[None]:
    """Raise BackendFailed for an OSError: that `action`, done in the folder `place`, failed."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise disk_full(error, place) from error
        reason = error.strerror or str(error)
        raise BackendFailed(f"can't {action} in {place}: {reason}") from error


def is_full(error: OSError) -> bool:
    """Whether the disk, or a quota on it, has no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_full(error: OSError, place: Path) -> BackendFailed:
    """The error that says which file system has no room, or no inodes, left."""
    mount = place.absolute()
    while not mount.is_mount():
        mount = mount.parent
    what = "space"
    if error.errno == errno.EDQUOT:
        what = "quota"
    elif os.statvfs(mount).f_files and not os.statvfs(mount).f_favail:
        what = "inodes"
    return BackendFailed(
        f"no {what} left on the file system {mount}, which has {place}",
        hint="free some there, or keep the store on another file system",
    )
