"""The upper folder of an overlay mount as the entries of a layer.

After the kernel's Documentation/filesystems/overlayfs.rst: a whiteout is a character device
0:0, an opaque folder has the attribute ``overlay.opaque=y``. Read by folders' descriptors,
never following a link: the process that filled it is not to be trusted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pybuild.errors import BackendFailed
from pybuild.files.foundentries import FoundEntries, same_attributes
from pybuild.files.safepath import Listed, Root
from pybuild.files.trees import NewEntry, Tree, join, parent_of, shown
from pybuild.oci.layerindex import OPAQUE, RESERVED, WHITEOUT, Entry, Kind

_OVERLAY = ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.")
_OPAQUE_NAMES = frozenset({OPAQUE, b".wh..opq"})


class OverlayNotPlain(BackendFailed):
    """The upper folder refers to lower files (redirect_dir, metacopy): only a mount can tell."""


def upper_entries(
    upper: Path,
    parent: Tree,
    drop: frozenset[bytes] = frozenset(),
    *,
    newest: int | None = None,
    owners: bool = True,
    fuse: bool = False,
    on_status: Callable[[os.stat_result], object] | None = None,
) -> Iterator[NewEntry]:
    """What a process changed, as entries over `parent`, sorted by path.

    The folder is read at once and files when they are opened, so it must not change before
    the layer is written. Left out are the root itself, sockets, folders that have `parent`'s
    mode, owner and attributes (their times are those of changes inside), files copied up
    without a change, and paths in `drop`, unless something is in them. `newest` is as in
    :meth:`pybuild.backend.ROLayer.begin`. Without `owners`, those on disk mean nothing: what
    `parent` has keeps its owner, what is new is root's. With `fuse`, names that begin with
    ``.wh.`` are fuse-overlayfs's marks. `on_status` is told the lstat of all below `upper`.
    Raises OverlayNotPlain, CopyFailed for a path longer than 4096 bytes, and BackendFailed if
    the folder can't be read.
    """
    try:
        walk = _Walk(Root(upper), parent, newest=newest, owners=owners, fuse=fuse)
        return iter(_without(drop, walk.entries(on_status or (lambda _status: None))))
    except OSError as error:
        raise BackendFailed(f"can't read what the step changed: {error.strerror}") from error


class _Walk:
    def __init__(
        self, root: Root, parent: Tree, *, newest: int | None, owners: bool, fuse: bool
    ) -> None:
        self._root = root
        self._made = FoundEntries(root, newest=newest, owners=owners)
        self._fuse = fuse
        self._parent = parent
        self._linked: dict[tuple[int, int], bytes] = {}
        self._opaque: set[bytes] = set()  # folders that nothing shows in from below
        self._unchanged: dict[bytes, Entry] = {}

    def entries(self, on_status: Callable[[os.stat_result], object]) -> list[NewEntry]:
        found: list[NewEntry] = []
        self._check_plain(b"", self._root.status(b""))
        pending = [b""]
        while pending:
            folder = pending.pop()
            items: Sequence[Listed] = sorted(self._root.listed(folder), key=lambda i: i.name)
            for item in items:
                on_status(item.status)
            if self._fuse:
                found.extend(self._marks(folder, items))
                items = [item for item in items if not item.name.startswith(WHITEOUT)]
            for item in items:
                path = join(folder, item.name)
                found.extend(self._entries_of(path, item))
                if stat.S_ISDIR(item.status.st_mode):
                    pending.append(path)
        found.sort(key=lambda new: new.entry.path)
        return found

    def _marks(self, folder: bytes, items: Sequence[Listed]) -> Iterator[NewEntry]:
        """What fuse-overlayfs says by names, which may say again what attributes said."""
        marks = [item.name for item in items if item.name.startswith(WHITEOUT)]
        if not _OPAQUE_NAMES.isdisjoint(marks):
            before = self._before(folder)
            if before is not None and before.kind is Kind.DIRECTORY:
                yield from self._made_opaque(folder)
            if folder in self._unchanged:
                yield NewEntry(self._unchanged.pop(folder))
        for name in marks:
            removed = join(folder, name.removeprefix(WHITEOUT))
            if not name.startswith(RESERVED) and self._before(removed) is not None:
                yield NewEntry(Entry(removed, Kind.WHITEOUT, mode=0))

    def _made_opaque(self, path: bytes) -> Iterator[NewEntry]:
        if path not in self._opaque:
            self._opaque.add(path)
            yield NewEntry(Entry(path, Kind.OPAQUE, mode=0))

    def _before(self, path: bytes) -> Entry | None:
        """What shows at `path` from below, if nothing is there in the upper folder."""
        return None if path and parent_of(path) in self._opaque else self._parent.get(path)

    def _entries_of(self, path: bytes, item: Listed) -> Iterator[NewEntry]:
        self._check_plain(path, item)
        before = self._before(path)
        if stat.S_ISCHR(item.status.st_mode) and item.status.st_rdev == 0:
            if before is not None:
                yield NewEntry(Entry(path, Kind.WHITEOUT, mode=0))
            return
        entry = self._made.entry(path, item, before)
        if entry is None:
            return
        if entry.kind is Kind.DIRECTORY:
            yield from self._folder(entry, before, item)
        elif entry.kind is Kind.FILE and item.status.st_nlink > 1:
            inode = item.status.st_dev, item.status.st_ino
            first = self._linked.setdefault(inode, path)
            yield self._made.new(entry, item.status, first)
        elif not self._made.is_same(entry, before, item.status):
            yield self._made.new(entry, item.status)

    def _folder(self, entry: Entry, before: Entry | None, item: Listed) -> Iterator[NewEntry]:
        path = entry.path
        over_folder = before is not None and before.kind is Kind.DIRECTORY
        opaque = over_folder and any(
            name.removeprefix(prefix) == "opaque" and value == b"y"
            for prefix in _OVERLAY
            for name, value in item.xattrs
        )
        if opaque:
            yield from self._made_opaque(path)
        if not opaque and before is not None and same_attributes(entry, before):
            self._unchanged[path] = entry
            return
        if before is None:
            self._opaque.add(path)
        yield NewEntry(entry)

    def _check_plain(self, path: bytes, item: Listed) -> None:
        for name, _ in item.xattrs:
            if name.startswith(_OVERLAY) and name.rpartition(".")[2] in ("redirect", "metacopy"):
                raise OverlayNotPlain(f"the overlay has {name} on {shown(path)}")


def _without(drop: frozenset[bytes], found: list[NewEntry]) -> list[NewEntry]:
    """Children come after their folder: going backwards, a folder knows what it holds."""
    if not drop:
        return found
    kept: list[NewEntry] = []
    needed: set[bytes] = set()
    for new in reversed(found):
        entry = new.entry
        holds = entry.path in needed or (entry.kind is Kind.FILE and entry.size > 0)
        if entry.path in drop and not holds:
            continue
        kept.append(new)
        above = parent_of(entry.path)
        while above and above not in needed:
            needed.add(above)
            above = parent_of(above)
    kept.reverse()
    return kept
