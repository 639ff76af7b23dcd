"""A file system in a plain folder, recorded before a process ran and compared afterwards.

A file is what it was if its name leads to the same inode with the same time of its last
status change (inode(7)), which no process can set; a folder stays itself as long as its
inode and the time of its birth do (statx(2), where the file system has it). What differs is
compared with the tree that the folder showed.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

from pybuild.errors import BackendFailed
from pybuild.files.foundentries import FoundEntries, same_attributes
from pybuild.files.safepath import Listed, Root
from pybuild.files.trees import NewEntry, Tree, join
from pybuild.oci.layerindex import Entry, Kind
from pybuild.values import dataclass

_AT_EMPTY_PATH, _STATX_BTIME = 0x1000, 0x800
_SHORT = 0.001
_STATX_SIZE, _BTIME = 256, 0x50  # of its struct, and where that has stx_btime


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a name led to: ``changed`` is its ctime, ``born`` that of a folder's birth, both in ns.

    The latter is 0 where it isn't known.
    """

    inode: int
    changed: int
    born: int = 0


Record = Mapping[bytes, Recorded]
"""All below a folder, by path."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A file that may have changed: its entry, and what was there before."""

    entry: Entry
    before: Entry | None
    status: os.stat_result


def record(folder: Path) -> Record:
    """What is below `folder`. Whoever changes it afterwards waits for :func:`next_tick` first.

    Raises OSError.
    """
    found: dict[bytes, Recorded] = {}
    with Root(folder) as root:
        pending = [b""]
        while pending:
            here = pending.pop()
            for item in root.listed(here, with_xattrs=False):
                path = join(here, item.name)
                born = 0
                if stat.S_ISDIR(item.status.st_mode):
                    pending.append(path)
                    born = _born(root, path)
                found[path] = Recorded(item.status.st_ino, item.status.st_ctime_ns, born)
    return found


def next_tick(file: int) -> None:
    """Wait until changes get another time than they did when the open `file` was changed last.

    The kernel's clock for that ticks a few hundred times a second.
    """
    last = os.fstat(file).st_ctime_ns
    while os.fstat(file).st_ctime_ns == last:
        time.sleep(_SHORT)
        os.utime(file)


def record_to_bytes(found: Record) -> bytes:
    """The record in the form for :func:`record_from_bytes`."""
    return b"\0".join(
        b"%d %d %d %b" % (each.inode, each.changed, each.born, path) for path, each in found.items()
    )


def record_from_bytes(data: bytes) -> Record:
    """The record that :func:`record_to_bytes` was given."""
    found = {}
    for line in data.split(b"\0") if data else ():
        inode, changed, born, path = line.split(b" ", 3)
        found[path] = Recorded(int(inode), int(changed), int(born))
    return found


def compared_entries(
    folder: Path, before: Record, parent: Tree, *, newest: int | None = None, owners: bool = True
) -> Iterator[NewEntry]:
    """What a process changed in `folder`, which showed `parent`, as entries sorted by path.

    They are those that overlayfs would have given, see
    :func:`pybuild.files.upperdir.upper_entries`, also for `newest`, `owners` and errors; but
    a change of a file with several names is one of all its names.
    """
    try:
        return iter(_Comparison(Root(folder), before, parent, newest, owners=owners).entries())
    except OSError as error:
        raise BackendFailed(f"can't read what the step changed: {error.strerror}") from error


class _Comparison:
    def __init__(
        self, root: Root, before: Record, parent: Tree, newest: int | None, *, owners: bool
    ) -> None:
        self._root = root
        self._before = before
        self._parent = parent
        self._made = FoundEntries(root, newest=newest, owners=owners)
        self._names: defaultdict[bytes, set[bytes]] = defaultdict(set)
        for path in before:
            above, _, name = path.rpartition(b"/")
            self._names[above].add(name)
        self._linked: defaultdict[tuple[int, int], list[_Candidate]] = defaultdict(list)
        self._found: list[NewEntry] = []

    def entries(self) -> list[NewEntry]:
        pending = {b"": True}
        while pending:
            folder, stays = pending.popitem()
            pending |= self._compare(folder, stays=stays)
        for candidates in self._linked.values():
            self._add_linked(sorted(candidates, key=lambda each: each.entry.path))
        self._found.sort(key=lambda new: new.entry.path)
        return self._found

    def _compare(self, folder: bytes, *, stays: bool) -> dict[bytes, bool]:
        """Add what is in a folder, and what was if it `stays` the same; the folders in it."""
        items = self._root.listed(folder, with_xattrs=False)
        if stays:
            self._add_removed(folder, self._names[folder] - {item.name for item in items})
        folders: dict[bytes, bool] = {}
        changed = set()
        for item in items:
            path = join(folder, item.name)
            was = self._before.get(path) if stays else None
            if stat.S_ISDIR(item.status.st_mode):
                folders[path] = self._is_folder(path, item, was)
            if was is None or not _is_untouched(item, was):
                changed.add(item.name)
        # attributes cost more than the rest, and few files change
        for item in self._root.listed(folder) if changed else ():
            if item.name in changed:
                path = join(folder, item.name)
                before = self._parent.get(path) if stays else None
                self._add(path, item, before, stays=folders.get(path, False))
        return folders

    def _is_folder(self, path: bytes, item: Listed, was: Recorded | None) -> bool:
        """Whether the folder is the one that was recorded at this path."""
        if was is None or was.inode != item.status.st_ino:
            return False
        return was.changed == item.status.st_ctime_ns or was.born == _born(self._root, path)

    def _add_removed(self, folder: bytes, names: set[bytes]) -> None:
        for name in names:
            path = join(folder, name)
            if self._parent.get(path) is not None:
                self._found.append(NewEntry(Entry(path, Kind.WHITEOUT, mode=0)))

    def _add(self, path: bytes, item: Listed, before: Entry | None, *, stays: bool) -> None:
        """Add what may have changed; of a folder, whether it `stays` the same."""
        if stat.S_ISCHR(item.status.st_mode) and item.status.st_rdev == 0:
            # anybody may make such a device, and no overlay would show it
            if before is not None:
                self._found.append(NewEntry(Entry(path, Kind.WHITEOUT, mode=0)))
            return
        entry = self._made.entry(path, item, before)
        if entry is None:
            return
        if entry.kind is Kind.DIRECTORY:
            if not stays and before is not None and before.kind is Kind.DIRECTORY:
                self._found.append(NewEntry(Entry(path, Kind.OPAQUE, mode=0)))
            elif before is not None and same_attributes(entry, before):
                return
            self._found.append(NewEntry(entry))
        elif entry.kind is Kind.FILE and item.status.st_nlink > 1:
            inode = item.status.st_dev, item.status.st_ino
            self._linked[inode].append(_Candidate(entry, before, item.status))
        elif not self._made.is_same(entry, before, item.status):
            self._found.append(self._made.new(entry, item.status))

    def _add_linked(self, names: list[_Candidate]) -> None:
        """Add a file with all its names, if that isn't how it was."""
        firsts = {each.before.link or each.before.path for each in names if each.before is not None}
        if len(firsts) == 1 and all(
            self._made.is_same(each.entry, each.before, each.status) for each in names
        ):
            return
        first = names[0].entry.path
        for each in names:
            self._found.append(self._made.new(each.entry, each.status, first))


def _is_untouched(item: Listed, was: Recorded) -> bool:
    return (was.inode, was.changed) == (item.status.st_ino, item.status.st_ctime_ns)


def _born(root: Root, path: bytes) -> int:
    """When the folder was made, in ns since 1970; 0 where the system doesn't tell."""
    statx = _statx()
    if statx is None:
        return 0
    found = ctypes.create_string_buffer(_STATX_SIZE)
    fd = root.open_folder(path)
    try:
        if statx(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, found) != 0:
            return 0
    finally:
        os.close(fd)
    if not struct.unpack_from("=I", found, 0)[0] & _STATX_BTIME:
        return 0
    seconds, nanoseconds = struct.unpack_from("=qI", found, _BTIME)
    return int(seconds) * 10**9 + int(nanoseconds)


@cache
def _statx() -> Callable[..., int] | None:
    """The C library's statx, if it has it."""
    return getattr(ctypes.CDLL(None), "statx", None)
