"""A root file system as a process sees it: with what is mounted in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from pybuild.files.trees import MemoryTree, Tree
from pybuild.oci.layerindex import Entry, Kind
from pybuild.values import replace

_EMPTY = MemoryTree(())


class MountedTree(Tree):
    """`root` and what :meth:`mount` put over parts of it, the latest on top."""

    def __init__(self, root: Tree) -> None:
        self._root = root
        self._mounts: dict[bytes, tuple[Kind, Tree, bytes]] = {}
        self._parents: set[bytes] = set()

    def mount(self, path: bytes, kind: Kind, source: Tree | None = None, top: bytes = b"") -> None:
        """Show a folder or file (`kind`) at `path`: what is at `top` in `source`, or nothing."""
        self._mounts[path] = kind, source or _EMPTY, top
        parent = path
        while parent := parent.rpartition(b"/")[0]:
            self._parents.add(parent)

    def get(self, path: bytes) -> Entry | None:
        mounted = self._mounts.get(path)
        tree, inside = self._located(path)
        entry = tree.get(inside)
        if entry is not None and not (mounted and entry.kind is not mounted[0]):
            return replace(entry, path=path)
        if mounted:
            return Entry(path, mounted[0], 0o755)
        # a runtime makes the folders that a mount point lacks
        return Entry(path, Kind.DIRECTORY, 0o755) if path in self._parents else None

    def children(self, path: bytes) -> Sequence[bytes]:
        tree, inside = self._located(path)
        mounted = {
            point.rpartition(b"/")[2]
            for point in (*self._mounts, *self._parents)
            if point and point.rpartition(b"/")[0] == path
        }
        return sorted({*tree.children(inside), *mounted})

    def open(self, path: bytes) -> BinaryIO:
        tree, inside = self._located(path)
        return tree.open(inside)

    def _located(self, path: bytes) -> tuple[Tree, bytes]:
        """The tree that `path` lies in, and its path there."""
        point = path
        while point:
            if point in self._mounts:
                _, tree, top = self._mounts[point]
                below = path[len(point) :]
                return tree, (top + below).lstrip(b"/")
            point = point.rpartition(b"/")[0]
        return self._root, path
