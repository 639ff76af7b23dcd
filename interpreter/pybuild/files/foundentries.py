"""Files that a process left on this machine, as entries of a layer."""

from __future__ import annotations

import os
import stat
from contextlib import closing
from functools import partial
from hashlib import sha256

from pybuild.errors import CopyFailed
from pybuild.files.safepath import Listed, Root
from pybuild.files.trees import NewEntry, shown
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layertar import allowed_xattrs
from pybuild.values import replace

_LONGEST = 4096  # PATH_MAX: what is deeper can't be unpacked anywhere
_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}
_CHUNK = 1024 * 1024


class FoundEntries:
    """Makes entries of what is below a folder. Nothing there may change until they are written.

    Times after `newest`, in seconds since 1970, become it. Without `owners`, those on disk
    mean nothing: what was there before keeps its owner, what is new is root's.
    """

    def __init__(self, root: Root, *, newest: int | None, owners: bool) -> None:
        self._root = root
        self._newest = newest
        self._owners = owners

    def entry(self, path: bytes, item: Listed, before: Entry | None) -> Entry | None:
        """What lies at `path`, where `before` was; None for a socket, which no layer can hold.

        Raises CopyFailed for a path longer than 4096 bytes.
        """
        status = item.status
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return None
        if len(path) > _LONGEST:
            raise CopyFailed(
                f"the step made a path of more than {_LONGEST} bytes in {shown(path[:99])}"
            )
        device = (0, 0)
        if kind in (Kind.CHARACTER, Kind.BLOCK):
            device = os.major(status.st_rdev), os.minor(status.st_rdev)
        mtime = status.st_mtime_ns // 10**9
        if self._newest is not None:
            mtime = min(mtime, self._newest)
        uid, gid = status.st_uid, status.st_gid
        if not self._owners:
            uid, gid = (before.uid, before.gid) if before is not None else (0, 0)
        return Entry(
            path,
            kind,
            stat.S_IMODE(status.st_mode),
            uid,
            gid,
            status.st_size if kind is Kind.FILE else 0,
            mtime,
            item.target,
            device,
            allowed_xattrs(item.xattrs) if item.xattrs else (),
        )

    def is_same(self, entry: Entry, before: Entry | None, status: os.stat_result) -> bool:
        """Whether a file of any kind but a folder is what it was, its content read if need be."""
        return (
            before is not None
            and same_attributes(entry, before)
            # what was there may be newer than the newest
            and before.mtime in (entry.mtime, status.st_mtime_ns // 10**9)
            and (
                entry.size == before.size and self._digest(entry.path, status) == before.digest
                if entry.kind is Kind.FILE
                else (entry.link, entry.device) == (before.link, before.device)
            )
        )

    def new(self, entry: Entry, status: os.stat_result, first: bytes | None = None) -> NewEntry:
        """The entry with its content, or as a hard link to `first` if that is another path."""
        if entry.kind is not Kind.FILE:
            return NewEntry(entry)
        if first is not None and first != entry.path:
            return NewEntry(replace(entry, link=first))
        return NewEntry(entry, partial(self._root.open_content, entry.path, status))

    def _digest(self, path: bytes, status: os.stat_result) -> str:
        digest = sha256()
        with closing(self._root.open_content(path, status)) as stream:
            while piece := stream.read(_CHUNK):
                digest.update(piece)
        return f"sha256:{digest.hexdigest()}"


def same_attributes(entry: Entry, before: Entry) -> bool:
    """Whether both are of one kind, with the same mode, owner and extended attributes."""
    return (entry.kind, entry.mode, entry.uid, entry.gid, entry.xattrs) == (
        before.kind,
        before.mode,
        before.uid,
        before.gid,
        before.xattrs,
    )
