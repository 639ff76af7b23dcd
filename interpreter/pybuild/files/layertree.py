"""The merged view of a chain of layers, made of their indexes alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import BinaryIO

from pybuild.errors import InvalidImage
from pybuild.files.trees import Tree, parent_of, shown
from pybuild.oci.layerindex import Entry, Kind, LayerIndex
from pybuild.values import dataclass, replace

OpenFile = Callable[[int, Entry, int], BinaryIO]
"""Opens a FILE: the layer's position (0 is the bottom), the entry that has the content, and
the content's offset in that layer's uncompressed tar."""

_MAX_HOPS = 40
# entries, and bytes of their paths and of all above them
_MOST_NOTED = 500
_MOST_NOTED_BYTES = 100_000


class _Chain:
    """Layers over each other, and which of them have something at a path.

    Shared by the trees of a chain and of all its beginnings, which see its first layers: so
    one more layer costs the same on a thousand as on the first. Layers with many entries,
    of which a chain has few, are asked instead of noted. Safe in threads.
    """

    def __init__(self, indexes: Sequence[LayerIndex]) -> None:
        self.indexes: list[LayerIndex] = []
        self._lock = threading.Lock()
        self._large: list[int] = []
        self._touching: dict[bytes, list[int]] = {}
        for index in indexes:
            self._append(index)

    def extended(self, count: int, index: LayerIndex) -> _Chain:
        """A chain that has `index` on top of this one's first `count` layers."""
        with self._lock:
            if count == len(self.indexes):
                self._append(index)
                return self
        return _Chain([*self.indexes[:count], index])

    def touching(self, path: bytes, count: int) -> list[int]:
        """Which of the first `count` layers have an entry at `path` or below it, top first."""
        found = [n for n in self._touching.get(path, ()) if n < count]
        found += [n for n in self._large if n < count and self.indexes[n].touches(path)]
        return sorted(found, reverse=True)

    def _append(self, index: LayerIndex) -> None:
        position = len(self.indexes)
        self.indexes.append(index)
        if _is_large(index):
            self._large.append(position)
            return
        touched = {b""} if len(index) else set[bytes]()
        for path in index.paths:
            above = path
            while above not in touched:
                touched.add(above)
                above = parent_of(above)
        for path in touched:
            self._touching.setdefault(path, []).append(position)


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder of the merged view. What is in it in layers below `lowest` isn't seen."""

    entry: Entry
    lowest: int


class LayerTree(Tree):
    """What a chain of layers looks like when mounted (OCI image specification, `layer.md`).

    An upper layer's entry hides a lower one of the same path, and all below it unless both
    are folders. A folder that no layer lists but that has something in it is 0755 and
    root's. A hard link to a file of a lower layer has that file's attributes and content;
    ``Entry.link`` names only a file that is the same in this view.
    """

    def __init__(self, indexes: Sequence[LayerIndex], open_file: OpenFile) -> None:
        self._chain = _Chain(indexes)
        self._count = len(indexes)
        self._open_file = open_file
        self._folders: dict[bytes, _Folder | None] = {}
        self._lower: dict[int, LayerTree] = {}

    def extended(self, index: LayerIndex, open_file: OpenFile) -> LayerTree:
        """The same view with one more layer on top; `open_file` serves all of its layers."""
        upper = LayerTree((), open_file)
        upper._chain = self._chain.extended(self._count, index)
        upper._count = self._count + 1
        if b"" not in index.paths[:1]:  # else it says something about the root
            upper._folders[b""] = self._folder(b"")
        return upper

    @property
    def indexes(self) -> tuple[LayerIndex, ...]:
        """The layers, bottom first."""
        return tuple(self._chain.indexes[: self._count])

    def get(self, path: bytes) -> Entry | None:
        found = self._find(path)
        if found is None:
            return None
        entry = found[1]
        if entry.kind is not Kind.FILE or not entry.link:
            return entry
        return self._settle_link(entry)

    def layer_of(self, path: bytes) -> int | None:
        """The position of the uppermost layer that has the entry at `path`; None if none has."""
        found = self._find(path)
        return None if found is None else found[0]

    def children(self, path: bytes) -> Sequence[bytes]:
        folder = self._folder(path)
        if folder is None:
            return ()
        present: set[bytes] = set()
        removed: set[bytes] = set()
        for position in self._touching(path, folder.lowest):
            index = self._chain.indexes[position]
            present.update(name for name in index.children(path) if name not in removed)
            removed.update(index.removed_children(path))
        return sorted(present)

    def open(self, path: bytes) -> BinaryIO:
        found = self._content(path)
        if found is None:
            raise InvalidImage(f"{shown(path)} is not a regular file with content in the image")
        layer, entry = found
        return self._open_file(layer, entry, self._offset(layer, entry.path))

    def _settle_link(self, entry: Entry) -> Entry:
        """A hard link with its file's attributes, and named only while that is still there."""
        content = self._content(entry.path)
        if content is None:
            return replace(entry, link=b"")
        holder_layer, holder = content
        target = holder.link or holder.path
        seen = self._find(target)
        same = (
            seen is not None
            and seen[0] == holder_layer
            and target != entry.path
            and self._offset(holder_layer, target) == self._offset(holder_layer, holder.path)
        )
        return replace(holder, path=entry.path, link=target if same else b"")

    def _offset(self, layer: int, path: bytes) -> int:
        return self._chain.indexes[layer].offset(path)

    def _content(self, path: bytes) -> tuple[int, Entry] | None:
        """The layer and entry with the content of the file at `path`."""
        view = self
        for _ in range(_MAX_HOPS):
            found = view._find(path)
            if found is None or found[1].kind is not Kind.FILE:
                return None
            layer, entry = found
            if self._offset(layer, entry.path) >= 0:
                return layer, entry
            if not entry.link:
                return None
            view, path = self._below(layer), entry.link
        return None

    def _below(self, layer: int) -> LayerTree:
        """What a layer was put on: upper layers don't change what its hard links mean."""
        if layer not in self._lower:
            below = LayerTree((), self._open_file)
            below._chain, below._count = self._chain, layer
            self._lower[layer] = below
        return self._lower[layer]

    def _touching(self, path: bytes, lowest: int) -> list[int]:
        return [n for n in self._chain.touching(path, self._count) if n >= lowest]

    def _find(self, path: bytes) -> tuple[int, Entry] | None:
        """The entry at `path`, and the position of its layer."""
        if not path:
            root = self._folder(b"")
            return None if root is None else (-1, root.entry)
        parent = self._folder(path.rpartition(b"/")[0])
        if parent is None:
            return None
        for position in self._touching(path, parent.lowest):
            index = self._chain.indexes[position]
            entry = index.get(path)
            if entry is not None and entry.kind is not Kind.DIRECTORY:
                return position, entry
            if entry is not None or _implies(index, path):
                folder = self._folder(path)
                return None if folder is None else (position, folder.entry)
            if index.removes(path):
                return None
        return None

    def _folder(self, path: bytes) -> _Folder | None:
        """The folder at `path`, None if there is none; every folder is looked up once."""
        known = self._folders.get(path, self)
        if known is not self:
            return known  # type: ignore[return-value]  # self stands for "not yet known"
        missing = [path]
        while missing[-1] and missing[-1].rpartition(b"/")[0] not in self._folders:
            missing.append(missing[-1].rpartition(b"/")[0])
        for folder in reversed(missing):
            self._folders[folder] = self._merge(folder)
        return self._folders[path]

    def _merge(self, path: bytes) -> _Folder | None:
        above = 0
        if path:
            parent = self._folders[parent_of(path)]
            if parent is None:
                return None
            above = parent.lowest
        lowest, implied = self._count, not path
        listed: Entry | None = None
        for position in self._touching(path, above):
            index = self._chain.indexes[position]
            entry = index.get(path)
            if entry is not None and entry.kind is not Kind.DIRECTORY:
                break
            lowest = position
            listed = listed or entry
            implied = implied or _implies(index, path)
            if index.removes(path) or index.is_opaque(path):
                break
        else:
            lowest = above
        if listed is None and not implied:
            return None
        return _Folder(listed or Entry(path, Kind.DIRECTORY, mode=0o755), lowest)


def _is_large(index: LayerIndex) -> bool:
    if len(index) > _MOST_NOTED:
        return True
    return sum(len(path) * (1 + path.count(b"/")) for path in index.paths) > _MOST_NOTED_BYTES


def _implies(index: LayerIndex, path: bytes) -> bool:
    """Whether `path` must be a folder for what the layer has in it, listed or not."""
    return index.is_opaque(path) or index.has_below(path)
