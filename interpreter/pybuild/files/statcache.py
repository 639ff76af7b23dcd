"""Digests of files by what lstat(2) says of them, so that no unchanged file is read again."""

from __future__ import annotations

import os
import struct
import tempfile
import threading
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

_MAGIC = b"pybuild stat cache 1\n"
_HEAD = len(_MAGIC) + sha256().digest_size
_ROW = struct.Struct("<QQQqq32s")  # device, inode, size, mtime_ns, ctime_ns, digest
_MOST_ROWS = 200_000
_MOST_FILES = 64
# the coarsest clock of a file system in use, FAT's, in nanoseconds
_GRANULARITY = 2 * 10**9

_Identity = tuple[int, int, int, int, int]


class StatCache:
    """What is known of the files of one build context. Safe in threads.

    No write leaves a file's ctime alone, whatever is put back afterwards, but one may fall
    into the same tick of the file system's clock as the write before. So a file is taken as
    known only if it was last changed at least two seconds before it was looked at, as git
    does with its index. Whoever owns `folder` is trusted.
    """

    def __init__(self, folder: Path, top: os.stat_result, began: int) -> None:
        """Read what `folder` keeps for the context whose own folder has the status `top`.

        `began` is the time of day in nanoseconds before anything in it was looked at.
        """
        self._path = folder / f"{top.st_dev:x}-{top.st_ino:x}"
        self._newest = began - _GRANULARITY
        self._lock = threading.Lock()
        self._known = _read(self._path)
        self._used: dict[_Identity, bytes] = {}
        self._learned = False

    def find(self, status: os.stat_result) -> str | None:
        """The digest, as ``sha256:…``, of a file with this lstat; None where it isn't known."""
        identity = _identity(status)
        digest = self._known.get(identity)
        if digest is None:
            return None
        self._used[identity] = digest
        return f"sha256:{digest.hex()}"

    def record(self, status: os.stat_result, digest: str) -> None:
        """Keep the digest of a file that was read after it had this lstat."""
        # on Windows the ctime is a file's birth
        if os.name == "nt" or max(status.st_mtime_ns, status.st_ctime_ns) >= self._newest:
            return
        with self._lock:
            self._used[_identity(status)] = bytes.fromhex(digest.removeprefix("sha256:"))
            self._learned = True

    def save(self) -> None:
        """Keep what was recorded, at once or not at all; where that fails, it is read again."""
        with self._lock:
            if not self._learned:
                return
            self._learned = False
            rows = {**self._known, **self._used}
            if len(rows) > _MOST_ROWS:
                rows = self._used
            body = b"".join(_ROW.pack(*identity, digest) for identity, digest in rows.items())
        with suppress(OSError):
            folder = self._path.parent
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            number, name = tempfile.mkstemp(dir=folder, prefix=".new-")
            try:
                with open(number, "wb") as file:  # noqa: PTH123  (a descriptor, not a path)
                    file.write(_MAGIC + sha256(body).digest() + body)
                os.replace(name, self._path)  # noqa: PTH105  (pairs with mkstemp)
            except BaseException:
                os.unlink(name)  # noqa: PTH108  (as above)
                raise
            _forget_oldest(folder)


def _read(path: Path) -> dict[_Identity, bytes]:
    """What is kept there; nothing of what is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    body = memoryview(content)[_HEAD:]
    if content[:_HEAD] != _MAGIC + sha256(body).digest() or len(body) % _ROW.size:
        return {}
    return {row[:5]: row[5] for row in _ROW.iter_unpack(body)}


def _identity(status: os.stat_result) -> _Identity:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _forget_oldest(folder: Path) -> None:
    """Keep the contexts that learned something last."""
    found = [path for path in folder.iterdir() if path.is_file()]
    files = sorted(found, key=lambda path: path.stat().st_mtime_ns)
    for path in files[:-_MOST_FILES]:
        path.unlink(missing_ok=True)
