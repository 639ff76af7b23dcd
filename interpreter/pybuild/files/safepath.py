"""The one module that opens untrusted paths of this machine.

Everything is reached from an open folder and no symlink is ever followed, so whoever swaps
files or folders meanwhile gets an error or the other file of the same name, never one from
outside. On Linux one openat2(2) does it; elsewhere, or where that call is forbidden, each
component is opened by itself with O_NOFOLLOW.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Self, cast

from pybuild.errors import ContextError
from pybuild.files.statcache import StatCache
from pybuild.files.trees import shown
from pybuild.oci.layerindex import NO_NAMES
from pybuild.values import dataclass

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from 3.12 on

_HAS_DIR_FD = os.open in os.supports_dir_fd and os.scandir in os.supports_fd
_SMALL = 1 << 16
_MANY = 1000  # files of which attributes are read
_MAX_CALL = 4000  # bytes of path in one call: PATH_MAX less some room
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = os.O_RDONLY | _CLOEXEC | _NOFOLLOW | getattr(os, "O_DIRECTORY", 0)
# to open what is in it, for which it needn't be readable
_PLACE = _FOLDER | getattr(os, "O_PATH", 0)
# O_NONBLOCK: opening a FIFO that took a file's place must not wait for a writer
_FILE = (
    os.O_RDONLY
    | _CLOEXEC
    | _NOFOLLOW
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)


Scanned = tuple[bytes, os.stat_result]
"""A name in a folder and its lstat."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A name in a folder and its lstat. ``xattrs`` are all that this process may read.

    ``digest`` is that of its content, where it is known.
    """

    name: bytes
    status: os.stat_result
    target: bytes = b""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    digest: str | None = None


class Root:
    """A folder of this machine; paths below it are bytes, relative, without ``..``.

    A context manager. The folder itself is trusted and may be reached by symlinks. Every
    method raises OSError as the system gives it: ELOOP or ENOTDIR where a component is a
    symlink.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fsencode(os.path.abspath(path))  # noqa: PTH100  (links stay, as given)
        self._fd = -1
        if _HAS_DIR_FD:
            self._fd = os.open(path, _FOLDER & ~_NOFOLLOW)
        self._openat2: Callable[[int, bytes, int], int] | None = None
        self._has_openat2 = sys.platform == "linux"
        self._last: _OpenFolder | None = None
        self._has_no_xattrs: Callable[[int, bytes], bool] | None = None
        self._looked_at = 0
        self._closing = weakref.finalize(self, _close, self._fd)

    def close(self) -> None:
        """Idempotent, and done at the latest when nothing refers to it any more."""
        self._closing()
        self._fd = -1
        self._last = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def scanned(self, path: bytes) -> list[Scanned]:
        """The names in the folder `path`, each with its lstat, in no order.

        Names that vanish meanwhile are left out.
        """
        if not _HAS_DIR_FD:
            return self._scan_by_name(path)
        with self._opened(path, _FOLDER) as fd:
            return _scan(fd)

    def listed(
        self,
        path: bytes,
        *,
        with_xattrs: bool = True,
        known: StatCache | None = None,
        scanned: Sequence[Scanned] | None = None,
    ) -> list[Listed]:
        """What is in the folder `path`, in no order. Names that vanish meanwhile are left out.

        What `known` says of regular files isn't looked up again, nor what was `scanned` before.
        """
        if not _HAS_DIR_FD:
            scanned = self._scan_by_name(path) if scanned is None else scanned
            return self._list_by_name(path, scanned, known)
        found = []
        with self._opened(path, _FOLDER) as fd:
            for name, status in _scan(fd) if scanned is None else scanned:
                try:
                    target, file = b"", None
                    if known is not None and stat.S_ISREG(status.st_mode):
                        file = known.find(status)
                    if stat.S_ISLNK(status.st_mode):
                        target = os.readlink(name, dir_fd=fd)
                    is_plain = file is not None and file.is_plain
                    xattrs = self._xattrs(fd, name) if with_xattrs and not is_plain else ()
                except FileNotFoundError:
                    continue
                digest = None if file is None else file.digest
                found.append(Listed(name, status, target, xattrs, digest))
        return found

    def status(self, path: bytes) -> Listed:
        """The folder `path` itself: its status and extended attributes, without a name."""
        if not _HAS_DIR_FD:
            return Listed(b"", os.lstat(self._by_name(path)))
        with self._opened(path, _FOLDER) as fd:
            return Listed(b"", os.fstat(fd), xattrs=self._xattrs(fd, b"."))

    def _xattrs(self, folder: int, name: bytes) -> tuple[tuple[str, bytes], ...]:
        """The extended attributes of `name` in the open `folder`, not following it."""
        if sys.platform != "linux":
            return ()
        self._looked_at += 1
        if self._looked_at == _MANY:
            from pybuild.files.xattrs import load_has_none  # noqa: PLC0415 - for many files

            self._has_no_xattrs = load_has_none()
        if self._has_no_xattrs is not None and self._has_no_xattrs(folder, name):
            return ()
        path = b"/proc/self/fd/%d/%b" % (folder, name)
        try:
            names = os.listxattr(path, follow_symlinks=False)
            return tuple(sorted((n, os.getxattr(path, n, follow_symlinks=False)) for n in names))
        except OSError:  # no such file system feature, no /proc, or just removed
            return ()

    def open_folder(self, path: bytes) -> int:
        """A descriptor of the folder `path`, which the caller closes. Linux and the like only."""
        return self._open(path, _FOLDER)

    def open_file(self, path: bytes, expected: os.stat_result | None = None) -> BinaryIO:
        """The regular file `path`, to be read once to its end, unbuffered.

        With `expected`, an earlier lstat of it: ContextError if it is another file, or was
        written since, or ends elsewhere than it did.
        """
        fd, size = self._open_regular(path, expected)
        try:
            raw = io.FileIO(fd, "rb", closefd=True)
        except BaseException:
            os.close(fd)
            raise
        return cast("BinaryIO", ExactReader(raw, size, path))

    def open_content(self, path: bytes, expected: os.stat_result) -> BinaryIO:
        """As `open_file`; a small file has been read by then, and needs no descriptor any more."""
        if expected.st_size > _SMALL:
            return self.open_file(path, expected)
        fd, size = self._open_regular(path, expected)
        try:
            content = os.read(fd, size + 1)
            while len(content) < size and (more := os.read(fd, size + 1 - len(content))):
                content += more
        finally:
            os.close(fd)
        if len(content) != size:
            raise ContextError(f"{shown(path)} changed while it was read")
        return WholeFile(content)

    def _open_regular(self, path: bytes, expected: os.stat_result | None) -> tuple[int, int]:
        """A descriptor of the file, and its size."""
        fd = self._open_file(path) if _HAS_DIR_FD else os.open(self._by_name(path), _FILE)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ContextError(f"{shown(path)} is not a regular file")
            if expected is not None and _identity(status) != _identity(expected):
                raise ContextError(f"{shown(path)} changed while the build was using it")
        except BaseException:
            os.close(fd)
            raise
        return fd, status.st_size

    def _open_file(self, path: bytes) -> int:
        folder, _, name = path.rpartition(b"/")
        if not folder or name in NO_NAMES or b"\0" in name:
            return self._open(path, _FILE)
        # the files of a folder are read one after the other, also by several threads
        last = self._last
        if last is None or last.path != folder:
            last = self._last = _OpenFolder(folder, self._open(folder, _PLACE))
        return os.open(name, _FILE, dir_fd=last.fd)

    @contextmanager
    def _opened(self, path: bytes, flags: int) -> Iterator[int]:
        fd = self._open(path, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open(self, path: bytes, flags: int) -> int:
        framed = b"/%b/" % path if path else b""
        if b"/../" in framed or b"//" in framed or b"\0" in path:
            raise OSError(errno.EINVAL, "invalid path", shown(path))
        if len(path) <= _MAX_CALL:
            return self._open_piece(self._fd, path or b".", flags)
        rest = path
        here = os.dup(self._fd)
        try:
            while rest:
                piece, rest = _split(rest)
                inner = self._open_piece(here, piece, _FOLDER if rest else flags)
                os.close(here)
                here = inner
        except BaseException:
            os.close(here)
            raise
        return here

    def _open_piece(self, here: int, piece: bytes, flags: int) -> int:
        """Open `piece`, which fits into one call, below the folder `here`."""
        if b"/" not in piece or not self._has_openat2:
            return _open_each(here, piece.split(b"/"), flags)
        if self._openat2 is None:
            from pybuild.files.openat2 import load_openat2  # noqa: PLC0415 - a flat context needs none

            self._openat2 = load_openat2()
        try:
            return self._openat2(here, piece, flags)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
        # an old kernel, or a seccomp filter that doesn't know the call
        self._has_openat2 = False
        return self._open_piece(here, piece, flags)

    def _by_name(self, path: bytes) -> bytes:
        """The path as a whole, where the system has no folders to start from (Windows)."""
        here = self._path
        for part in path.split(b"/") if path else []:
            here = os.path.join(here, part)  # noqa: PTH118  (bytes)
            if part == b".." or stat.S_ISLNK(os.lstat(here).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), shown(path))
        return here

    def _scan_by_name(self, path: bytes) -> list[Scanned]:
        with os.scandir(self._by_name(path)) as names:
            return [(item.name, os.lstat(item.path)) for item in names]

    def _list_by_name(
        self, path: bytes, scanned: Sequence[Scanned], known: StatCache | None
    ) -> list[Listed]:
        folder = self._by_name(path)
        found = []
        for name, status in scanned:
            is_link = stat.S_ISLNK(status.st_mode)
            target = os.readlink(os.path.join(folder, name)) if is_link else b""  # noqa: PTH115, PTH118  (bytes)
            file = None
            if known is not None and stat.S_ISREG(status.st_mode):
                file = known.find(status)
            digest = None if file is None else file.digest
            found.append(Listed(name, status, target, digest=digest))
        return found


class _OpenFolder:
    """A folder that stays open as long as somebody has this."""

    def __init__(self, path: bytes, fd: int) -> None:
        self.path = path
        self.fd = fd
        weakref.finalize(self, os.close, fd)


class AwaitsDigest:
    """A stream of a whole file. Who has computed its digest calls ``on_digest``, if there is one."""

    on_digest: Callable[[str], None] | None = None


class WholeFile(AwaitsDigest, io.BytesIO):
    """All of a file."""


class ExactReader(AwaitsDigest, io.RawIOBase):
    """Reads `size` bytes of a file; ContextError if it ends before or goes on after them."""

    def __init__(self, raw: io.FileIO, size: int, path: bytes) -> None:
        super().__init__()
        self._raw = raw
        self._left = size
        self._path = path

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def readinto(self, buffer: Buffer, /) -> int:
        count = self._raw.readinto(buffer) or 0
        self._left -= count
        if self._left < 0 or (not count and self._left and memoryview(buffer).nbytes > 0):
            raise ContextError(f"{shown(self._path)} changed while it was read")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _scan(folder: int) -> list[Scanned]:
    """The names in an open folder, each with its lstat."""
    # what os.fsencode does, which tells with many files
    encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
    found = []
    with os.scandir(folder) as names:
        for item in names:
            try:
                status = item.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            found.append((item.name.encode(encoding, errors), status))
    return found


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _split(path: bytes) -> tuple[bytes, bytes]:
    """What of `path` fits into one call, and the rest."""
    if len(path) <= _MAX_CALL:
        return path, b""
    cut = path.rfind(b"/", 0, _MAX_CALL)
    cut = cut if cut > 0 else path.find(b"/")  # one name too long: the system will say so
    return (path, b"") if cut < 0 else (path[:cut], path[cut + 1 :])


def _open_each(here: int, parts: list[bytes], flags: int) -> int:
    """Open `parts` one after the other, following no symlink."""
    fd = -1
    for i, part in enumerate(parts):
        start = here if i == 0 else fd
        try:
            inner = os.open(part, flags if i == len(parts) - 1 else _FOLDER, dir_fd=start)
        finally:
            if fd >= 0:
                os.close(fd)
        fd = inner
    return fd
