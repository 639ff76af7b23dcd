"""What is known of files by what lstat(2) says of them, so that none is read again unchanged.

A ctime changes with content, mode, owner and attributes, whatever is put back afterwards. On
Windows it is a file's birth.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from pybuild.files.rowfiles import RowFormat
from pybuild.files.trees import join
from pybuild.values import dataclass

# device, inode, size, mtime_ns, ctime_ns, digest, plain
_FORMAT = RowFormat(b"pybuild stat cache 2\n", struct.Struct("<QQQqq32s?"))
_MOST_ROWS = 200_000
_MOST_FILES = 64
# device, inode, size, mtime_ns, ctime_ns, mode, links, length of the name
_STATUS = struct.Struct("<QQQqqIQH")
# the coarsest clock of a file system in use, FAT's, in nanoseconds
_GRANULARITY = 2 * 10**9

_Identity = tuple[int, int, int, int, int]
_Row = tuple[bytes, bool]


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file's content, as ``sha256:…``, and whether it has no extended attribute that counts."""

    digest: str
    is_plain: bool


class StatCache:
    """What is known of the files of one build context. Safe in threads.

    A write may fall into the same tick of the file system's clock as the write before. So a
    file is taken as known only if it was last changed at least two seconds before it was looked
    at, as git does with its index. Whoever owns `folder` is trusted.
    """

    def __init__(self, folder: Path, top: os.stat_result, began: int) -> None:
        """Take what `folder` keeps for the context whose own folder has the status `top`.

        `began` is the time of day in nanoseconds before anything in it was looked at.
        """
        self._path = folder / f"{top.st_dev:x}-{top.st_ino:x}"
        self._newest = began - _GRANULARITY
        self._lock = threading.Lock()
        self._read_rows: dict[_Identity, _Row] | None = None
        self._used: dict[_Identity, _Row] = {}
        self._learned: list[tuple[os.stat_result, bool, str]] = []

    def find(self, status: os.stat_result) -> KnownFile | None:
        """What is known of a regular file with this lstat."""
        # read by now but for the first time
        known = self._known() if self._read_rows is None else self._read_rows
        if not known:
            return None
        identity = _identity(status)
        row = known.get(identity)
        if row is None:
            return None
        self._used[identity] = row
        return KnownFile(f"sha256:{row[0].hex()}", row[1])

    def record(self, status: os.stat_result, is_plain: bool, digest: str) -> None:
        """Keep what was found out about a file after it had this lstat; see :class:`KnownFile`.

        Its attributes were looked at after that as well.
        """
        # the rest is done at the end for all of them, which tells with many files
        self._learned.append((status, is_plain, digest))

    def save(self) -> None:
        """Keep what was recorded, at once or not at all; where that fails, it is read again."""
        if os.name == "nt":
            return
        learned: dict[_Identity, _Row] = {}
        while self._learned:
            status, is_plain, digest = self._learned.pop()
            if _changed(status) < self._newest:
                row = bytes.fromhex(digest.removeprefix("sha256:")), is_plain
                learned.setdefault(_identity(status), row)  # the last that was recorded
        if not learned:
            return
        known = self._known()
        with self._lock:
            self._used |= learned
            rows = {**known, **self._used}
            if len(rows) > _MOST_ROWS:
                rows = self._used
            content = _FORMAT.to_bytes((*identity, *row) for identity, row in rows.items())
        with suppress(OSError):
            folder = self._path.parent
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            from pybuild.files.wholefiles import (  # noqa: PLC0415 - once something is new
                keep_newest,
                write_whole,
            )

            write_whole(self._path, content)
            # the contexts that learned something last
            keep_newest(folder, _MOST_FILES)

    def _known(self) -> dict[_Identity, _Row]:
        with self._lock:
            if self._read_rows is None:
                self._read_rows = {row[:5]: row[5:] for row in _FORMAT.read(self._path)}
            return self._read_rows


@dataclass(frozen=True, slots=True)
class StatDigest:
    """``text`` is in hexadecimal, and says nothing on another machine; ``files`` is how many."""

    text: str
    files: int


def stat_digest(
    path: bytes,
    top: os.stat_result,
    scanned: Callable[[bytes], Sequence[tuple[bytes, os.stat_result]]],
    began: int,
    skip: Callable[[bytes], bool] | None = None,
) -> StatDigest | None:
    """One digest of all lstats at and below `path`, of which `top` is the first.

    None if any of it was changed less than two seconds before `began`, as of :class:`StatCache`.
    `scanned` lists a folder, sorted. Folders that `skip` names don't count, nor what is in them.
    Raises OSError.
    """
    newest = began - _GRANULARITY
    if os.name == "nt" or _changed(top) >= newest:
        return None
    digest, count = sha256(_lstat_row(b"", top)), 1
    pending = [path] if stat.S_ISDIR(top.st_mode) else []
    while pending:
        folder = pending.pop()
        rows = []
        for name, status in scanned(folder):
            if stat.S_ISDIR(status.st_mode):
                inner = join(folder, name)
                if skip is not None and skip(inner):
                    continue
                pending.append(inner)
            if _changed(status) >= newest:
                return None
            rows.append(_lstat_row(name, status))
        count += len(rows)
        digest.update(b"%d:%b%d:" % (len(folder), folder, len(rows)))
        digest.update(b"".join(rows))
    return StatDigest(digest.hexdigest(), count)


def _lstat_row(name: bytes, status: os.stat_result) -> bytes:
    """Bytes that no other name and status have, nor any that begins with them."""
    return (
        _STATUS.pack(
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_mode,
            status.st_nlink,
            len(name),
        )
        + name
    )


def _changed(status: os.stat_result) -> int:
    return max(status.st_mtime_ns, status.st_ctime_ns)


def _identity(status: os.stat_result) -> _Identity:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
