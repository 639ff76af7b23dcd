"""A tree with entries laid over it: what a file system will be after a COPY."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from pybuild.errors import CopyFailed
from pybuild.files.trees import NewEntry, Tree, parent_of, shown
from pybuild.oci.layerindex import WHITEOUT, Entry, Kind
from pybuild.values import replace

_MAX_NAME = 255
_MAX_PATH = 4095


class Staging(Tree):
    """`below` with entries put over it. Only looking up is offered, which resolving needs."""

    def __init__(self, below: Tree) -> None:
        self._below = below
        # with what tells the names of one file
        self._staged: dict[bytes, tuple[NewEntry, object | None]] = {}
        self._hiding: set[bytes] = set()
        # folders that were put where there was nothing: nothing is in them below either
        self._new: set[bytes] = set()

    def get(self, path: bytes) -> Entry | None:
        staged = self._staged.get(path)
        if staged is not None:
            return staged[0].entry
        if self._hiding:
            above = path
            while above:
                above = parent_of(above)
                if above in self._hiding:
                    return None
        if path.rpartition(b"/")[0] in self._new:
            return None
        return self._below.get(path)

    def children(self, path: bytes) -> Sequence[bytes]:
        skip = len(path) + 1 if path else 0
        here = {p[skip:] for p in self._staged if parent_of(p) == path and p}
        return sorted(here.union(() if path in self._hiding else self._below.children(path)))

    def open(self, path: bytes) -> BinaryIO:
        staged = self._staged.get(path)
        if staged is None:
            return self._below.open(path)
        content = staged[0].content
        if content is None:
            raise CopyFailed(f"{shown(path)} is not a regular file")
        return content()

    def put(self, new: NewEntry, group: object | None = None) -> None:
        """Add or replace an entry; files of one `group` become hard links of each other.

        Raises CopyFailed for a name that no layer can hold.
        """
        self.replace(self.get(new.entry.path), new, group)

    def replace(self, before: Entry | None, new: NewEntry, group: object | None = None) -> None:
        """As :meth:`put`, where `before` is what :meth:`get` finds at the path."""
        entry = new.entry
        name = entry.path.rpartition(b"/")[2]
        if name.startswith(WHITEOUT):
            raise CopyFailed(f"{shown(entry.path)} can't be in an image: .wh. marks a removed file")
        if len(name) > _MAX_NAME or len(entry.path) > _MAX_PATH:
            raise CopyFailed(f"the path {shown(entry.path[:80])}… is longer than Linux allows")
        is_folder = entry.kind is Kind.DIRECTORY
        if before is not None and (before.kind is Kind.DIRECTORY) != is_folder:
            self._forget_below(entry.path)
            self._hiding.add(entry.path)
        if is_folder and before is None:
            self._new.add(entry.path)
        self._staged[entry.path] = new, group

    def entries(self) -> list[NewEntry]:
        """What was put, sorted by path."""
        first: dict[int, bytes] = {}
        found = []
        for path in sorted(self._staged):
            if path in self._hiding and self._replaced(path):
                found.append(NewEntry(Entry(path, Kind.OPAQUE, mode=0)))
            new, group = self._staged[path]
            if group is not None:
                target = first.setdefault(id(group), path)
                if target != path:
                    new = NewEntry(replace(new.entry, link=target), source=new.source)
            found.append(new)
        return found

    def _replaced(self, path: bytes) -> bool:
        """Whether a folder stands where another one was, with something else in between."""
        before = self._below.get(path)
        kinds = {self._staged[path][0].entry.kind, before.kind if before else None}
        return kinds == {Kind.DIRECTORY}

    def _forget_below(self, path: bytes) -> None:
        prefix = path + b"/"
        for below in [p for p in self._staged if p.startswith(prefix)]:
            del self._staged[below]
