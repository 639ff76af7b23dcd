"""What a layer's folder must hold, so that overlayfs shows what `LayerTree` does. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pybuild.errors import InvalidImage
from pybuild.files.layertree import LayerTree
from pybuild.files.trees import parent_of, shown
from pybuild.oci.layerindex import Entry, Kind, LayerIndex
from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class LowerFile:
    """A file that another layer's folder has: ``entries`` are its names in the new one.

    ``layer`` is the position of that layer, and ``path`` the file's there.
    """

    layer: int
    path: bytes
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What to make, in this order. ``folders`` have the root first, and parents before children.

    ``files`` are sorted by their offset in the tar; the entries of each are its names.
    ``others`` are symlinks, FIFOs and devices. ``covered`` are paths of ``others`` that hide
    something below.
    """

    folders: tuple[Entry, ...]
    opaque: frozenset[bytes]
    files: tuple[tuple[int, tuple[Entry, ...]], ...]
    lower_files: tuple[LowerFile, ...]
    others: tuple[Entry, ...]
    covered: frozenset[bytes]
    whiteouts: tuple[bytes, ...]


def plan_layer(index: LayerIndex, tree: LayerTree, below: LayerTree) -> LayerPlan:
    """Plan the layer `index`, which is the top of `tree` and on top of `below`.

    Raises InvalidImage for a hard link to a file that isn't there.
    """
    return _Planning(index, tree, below).plan()


class _Planning:
    def __init__(self, index: LayerIndex, tree: LayerTree, below: LayerTree) -> None:
        self._index = index
        self._tree = tree
        self._below = below
        # whether the layer's entries in a folder count, and whether lower ones show there
        self._states = {b"": (True, not index.is_opaque(b""))}
        self._folders: set[bytes] = {b""}
        self._opaque: set[bytes] = set()
        self._files: defaultdict[int, list[Entry]] = defaultdict(list)
        self._lower: defaultdict[tuple[int, bytes], list[Entry]] = defaultdict(list)
        self._others: list[Entry] = []
        self._covered: set[bytes] = set()
        self._whiteouts: list[bytes] = []

    def plan(self) -> LayerPlan:
        for entry in self._index:
            self._add(entry)
        if self._index.is_opaque(b""):
            self._cover_root()
        return LayerPlan(
            tuple(self._folder(path) for path in sorted(self._folders)),
            frozenset(self._opaque),
            tuple((offset, tuple(self._files[offset])) for offset in sorted(self._files)),
            tuple(LowerFile(*key, tuple(names)) for key, names in self._lower.items()),
            tuple(self._others),
            frozenset(self._covered),
            tuple(self._whiteouts),
        )

    def _add(self, entry: Entry) -> None:
        path = entry.path
        parent = parent_of(path)
        counts, merges = self._state(parent)
        if path and not counts:
            return
        match entry.kind:
            case Kind.WHITEOUT:
                self._remove(path, merges)
                return
            case Kind.OPAQUE:
                if path and self._state(path)[0]:
                    self._opaque.add(path)
                    self._need(path)
                return
            case Kind.DIRECTORY:
                parent = path
            case Kind.FILE:
                self._add_file(entry)
            case Kind.SYMLINK | Kind.CHARACTER | Kind.BLOCK | Kind.FIFO:
                self._others.append(entry)
                if merges and self._below.get(path) is not None:
                    self._covered.add(path)
            case Kind.SOCKET:
                raise InvalidImage(f"the layer has a socket at {shown(path)}")
        self._need(parent)

    def _remove(self, path: bytes, merges: bool) -> None:
        entry = self._index.get(path)
        if entry is None and not self._index.has_below(path):
            if merges and self._below.get(path) is not None:
                self._whiteouts.append(path)
                self._need(parent_of(path))
        elif entry is None or entry.kind is Kind.DIRECTORY:
            self._opaque.add(path)

    def _cover_root(self) -> None:
        """Remove all from the root: overlayfs doesn't heed a mark on the root of a layer."""
        for name in self._below.children(b""):
            self._remove(name, merges=True)

    def _add_file(self, entry: Entry) -> None:
        path = entry.path
        if not entry.link or entry.digest is not None:
            self._files[self._index.offset(path)].append(entry)
            return
        seen = self._tree.get(path)
        layer = self._below.layer_of(entry.link)
        # a target in this layer comes later in the tar, and isn't the one that is meant
        later = self._index.get(entry.link) is not None
        if later or layer is None or seen is None or seen.digest is None:
            raise InvalidImage(
                f"the layer has a hard link {shown(path)} to {shown(entry.link)}, "
                "which is no file below it"
            )
        self._lower[layer, entry.link].append(seen)

    def _state(self, folder: bytes) -> tuple[bool, bool]:
        missing = []
        while folder not in self._states:
            missing.append(folder)
            folder = parent_of(folder)
        counts, merges = self._states[folder]
        for path in reversed(missing):
            entry = self._index.get(path)
            counts = counts and (entry is None or entry.kind is Kind.DIRECTORY)
            merges = merges and not (self._index.removes(path) or self._index.is_opaque(path))
            self._states[path] = counts, merges
        return counts, merges

    def _need(self, folder: bytes) -> None:
        while folder not in self._folders:
            self._folders.add(folder)
            folder = parent_of(folder)

    def _folder(self, path: bytes) -> Entry:
        """The folder as it is seen: one that the layer only implies is that of the layer below."""
        entry = self._tree.get(path)
        return Entry(path, Kind.DIRECTORY, mode=0o755) if entry is None else entry


def plan_copy(tree: LayerTree) -> tuple[Sequence[Entry], Sequence[LowerFile], Sequence[Entry]]:
    """All that `tree` shows: its folders with the root first, files by content, and the rest."""
    folders = [tree.get(b"") or Entry(b"", Kind.DIRECTORY, mode=0o755)]
    files: defaultdict[bytes, list[Entry]] = defaultdict(list)
    places: dict[bytes, tuple[int, bytes]] = {}
    others: list[Entry] = []
    pending = [b""]
    while pending:
        folder = pending.pop()
        for name in tree.children(folder):
            path = folder + b"/" + name if folder else name
            entry = tree.get(path)
            if entry is None:
                continue
            if entry.kind is Kind.DIRECTORY:
                folders.append(entry)
                pending.append(path)
            elif entry.kind is not Kind.FILE:
                others.append(entry)
            elif entry.digest is None or (layer := tree.layer_of(path)) is None:
                raise InvalidImage(f"{shown(path)} in the image is a hard link to nothing")
            else:
                file = entry.link or path
                places.setdefault(file, (layer, path))
                files[file].append(entry)
    copies = [LowerFile(*places[file], tuple(names)) for file, names in files.items()]
    return folders, copies, others
