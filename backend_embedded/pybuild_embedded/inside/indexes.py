"""The layers' indexes that a worker has read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from pybuild.errors import InvalidImage
from pybuild.files.layertree import LayerTree
from pybuild.oci.layerindex import Entry, LayerIndex

_MOST_ENTRIES = 1_000_000
_COST_OF_AN_INDEX = 50  # in entries


class Indexes:
    """Keeps what was used last, so that steps on one base don't read its index each time.

    An index file never changes.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, LayerIndex] = OrderedDict()
        self._cost = 0
        self._last: tuple[tuple[Path, ...], LayerTree] = (), LayerTree((), _no_content)

    def get(self, path: Path) -> LayerIndex:
        """The index in this file. Raises InvalidImage if it is damaged, and OSError."""
        index = self._kept.get(path)
        if index is not None:
            self._kept.move_to_end(path)
            return index
        index = LayerIndex.from_bytes(path.read_bytes())
        self._kept[path] = index
        self._cost += len(index) + _COST_OF_AN_INDEX
        while self._cost > _MOST_ENTRIES and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._cost -= len(oldest) + _COST_OF_AN_INDEX
        return index

    def tree(self, paths: Sequence[Path]) -> LayerTree:
        """The merged view of these layers, bottom first. Files can't be opened in it."""
        known, tree = self._last
        if not known or known != tuple(paths[: len(known)]):
            tree = LayerTree([self.get(path) for path in paths], _no_content)
        else:
            # a step on what the last one left
            for path in paths[len(known) :]:
                tree = tree.extended(self.get(path), _no_content)
        self._last = tuple(paths), tree
        return tree


def _no_content(_layer: int, entry: Entry, _offset: int) -> BinaryIO:
    raise InvalidImage(f"the content of {entry.path!r} isn't at hand")
