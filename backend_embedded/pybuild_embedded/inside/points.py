"""Makes mount points in a plain folder for the time of a process, and takes them away again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pybuild.errors import StepFailed
from pybuild.files.safepath import Root
from pybuild.files.trees import parent_of, shown
from pybuild_embedded.requests import MakePoints, RemovePoints

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_IS_THERE = (0, 0)


def make_points(request: MakePoints) -> list[int]:
    """See `MakePoints`. Raises OSError."""
    there = set()
    with Root(request.folder) as root:
        for path, is_folder in request.points:
            with _changing(root, path) as (folder, name):
                try:
                    if is_folder:
                        os.mkdir(name, 0o755, dir_fd=folder)
                    else:
                        os.close(os.open(name, _NEW_FILE, 0o644, dir_fd=folder))
                except FileExistsError:
                    there.add(path)
        known: list[int] = []
        for path, _ in request.points:
            known += _IS_THERE if path in there else _known_by(root, path)
        return known


def remove_points(request: RemovePoints) -> None:
    """See `RemovePoints`. Raises OSError."""
    known = list(zip(request.known[::2], request.known[1::2], strict=True))
    made = [
        (*point, each)
        for point, each in zip(request.points, known, strict=True)
        if each != _IS_THERE
    ]
    with Root(request.folder) as root:
        untouched = []
        for path, is_folder, identity in made:
            found = _known_by(root, path)
            if found[0] != identity[0]:
                raise StepFailed(
                    f"the step moved or removed {shown(path)}, where something was mounted"
                )
            if found == identity:
                untouched.append((path, is_folder))
        for path, is_folder in reversed(untouched):
            with _changing(root, path) as (folder, name):
                if is_folder:
                    _remove_empty(folder, name)
                else:
                    os.unlink(name, dir_fd=folder)


def _remove_empty(folder: int, name: bytes) -> None:
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise


@contextmanager
def _beside(root: Root, path: bytes) -> Iterator[tuple[int, bytes]]:
    """The open folder that `path` is in, and the name there."""
    folder = root.open_folder(parent_of(path))
    try:
        yield folder, path.rpartition(b"/")[2]
    finally:
        os.close(folder)


@contextmanager
def _changing(root: Root, path: bytes) -> Iterator[tuple[int, bytes]]:
    """As `_beside`, for a change after which the folder has the times that it had."""
    with _beside(root, path) as (folder, name):
        status = os.fstat(folder)
        yield folder, name
        os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns))


def _known_by(root: Root, path: bytes) -> tuple[int, int]:
    """The inode and the time of its last change, zeros if it isn't there."""
    with suppress(FileNotFoundError, NotADirectoryError), _beside(root, path) as (folder, name):
        status = os.lstat(name, dir_fd=folder)
        return status.st_ino, status.st_ctime_ns
    return _IS_THERE
