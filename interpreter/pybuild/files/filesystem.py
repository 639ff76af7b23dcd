"""Reading a file system that is no folder of this machine, in the manner of `pathlib` and `os`."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import PurePosixPath
from typing import BinaryIO

from pybuild.files.trees import LinkLoop, NotAFolder, Tree, join, resolve
from pybuild.oci.layerindex import Entry, Kind

_TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
}
_MAX_PATH = 4096  # PATH_MAX of Linux
_ROOT = Entry(b"", Kind.DIRECTORY, mode=0o755)

AnyPath = str | PurePosixPath


class FileSystem:
    """The files of an image, or those that a failed step left, without unpacking them.

    Paths are absolute or relative to the root. Links are followed inside of the root only:
    an absolute one starts there, ``..`` ends there. Names that aren't UTF-8 are told as
    `os.fsdecode` does. Where :class:`pathlib.Path` would raise an OSError, so do these: of
    what isn't there FileNotFoundError, besides NotADirectoryError, IsADirectoryError, ELOOP.
    Everything else, as a layer that can't be fetched, is a
    :class:`~pybuild.errors.PybuildError`; what is closed raises UsageError. Safe in threads.
    """

    def __init__(self, use: Callable[[], AbstractContextManager[Tree]]) -> None:
        """`use` gives the tree for one operation, or raises a PybuildError."""
        self._use = use

    def read_bytes(self, path: AnyPath) -> bytes:
        """All of a file's content."""
        with self.open(path) as stream:
            return stream.read()

    def read_text(self, path: AnyPath, encoding: str = "utf-8", errors: str = "strict") -> str:
        """A file's content as text; line ends stay as they are."""
        return self.read_bytes(path).decode(encoding, errors)

    def open(self, path: AnyPath) -> BinaryIO:
        """A file for reading. It may be read after all else is closed; the caller closes it."""
        with self._use() as tree:
            entry = _found(tree, path)
            if entry.kind is Kind.DIRECTORY:
                raise _error(errno.EISDIR, path)
            if entry.kind is not Kind.FILE:
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            return tree.open(entry.path)

    def listdir(self, path: AnyPath = "/") -> list[str]:
        """The names in a folder, sorted."""
        with self._use() as tree:
            return [_text(name) for name in tree.children(_folder(tree, path).path)]

    def stat(self, path: AnyPath, *, follow_symlinks: bool = True) -> os.stat_result:
        """Mode and type, owner, size and time of modification in whole seconds; the rest is 0."""
        with self._use() as tree:
            entry = _found(tree, path, follow_last=follow_symlinks)
        size = len(entry.link) if entry.kind is Kind.SYMLINK else entry.size
        mode = _TYPES[entry.kind] | entry.mode
        times = (entry.mtime,) * 3
        return os.stat_result((mode, 0, 0, 1, entry.uid, entry.gid, size, *times))

    def readlink(self, path: AnyPath) -> str:
        """What a symlink says."""
        with self._use() as tree:
            entry = _found(tree, path, follow_last=False)
        if entry.kind is not Kind.SYMLINK:
            raise _error(errno.EINVAL, path)
        return _text(entry.link)

    def exists(self, path: AnyPath) -> bool:
        """Whether there is something at `path`; a link that leads to nothing is nothing."""
        return self._kind(path) is not None

    def is_file(self, path: AnyPath) -> bool:
        """Whether it is a regular file, or a link to one."""
        return self._kind(path) is Kind.FILE

    def is_dir(self, path: AnyPath) -> bool:
        """Whether it is a folder, or a link to one."""
        return self._kind(path) is Kind.DIRECTORY

    def walk(self, path: AnyPath = "/") -> Iterator[tuple[str, list[str], list[str]]]:
        """A folder and all below it, as `os.walk` gives them: path, folders, other names.

        Parents come first, names are sorted, no link is followed. What is taken out of the
        list of folders isn't gone into.
        """
        with self._use() as tree:
            top = _folder(tree, path).path
        pending = [top]
        while pending:
            folder = pending.pop()
            folders: list[str] = []
            others: list[str] = []
            with self._use() as tree:
                for name in tree.children(folder):
                    entry = tree.get(join(folder, name))
                    if entry is not None:
                        is_folder = entry.kind is Kind.DIRECTORY
                        (folders if is_folder else others).append(_text(name))
            yield f"/{_text(folder)}", folders, others
            pending += [join(folder, _raw(name)) for name in reversed(folders)]

    def _kind(self, path: AnyPath) -> Kind | None:
        with self._use() as tree:
            try:
                return _found(tree, path).kind
            except OSError as error:
                if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                    return None
                raise


def _found(tree: Tree, path: AnyPath, *, follow_last: bool = True) -> Entry:
    raw = _raw(path)
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    if len(raw) > _MAX_PATH:
        raise _error(errno.ENAMETOOLONG, path)
    try:
        real = resolve(tree, raw, follow_last=follow_last)
    except LinkLoop:
        raise _error(errno.ELOOP, path) from None
    except NotAFolder:
        raise _error(errno.ENOTDIR, path) from None
    entry = tree.get(real) or (None if real else _ROOT)
    if entry is None:
        raise _error(errno.ENOENT, path)
    return entry


def _folder(tree: Tree, path: AnyPath) -> Entry:
    entry = _found(tree, path)
    if entry.kind is not Kind.DIRECTORY:
        raise _error(errno.ENOTDIR, path)
    return entry


def _error(number: int, path: AnyPath) -> OSError:
    """The subclass of OSError for this number."""
    return OSError(number, os.strerror(number), str(path))


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _raw(path: AnyPath) -> bytes:
    return str(path).encode("utf-8", "surrogateescape")
