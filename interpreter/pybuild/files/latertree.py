"""A tree that costs nothing until it is looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import BinaryIO

from pybuild.files.trees import Tree
from pybuild.oci.layerindex import Entry


class LaterTree(Tree):
    """The tree that `make` gives when something of it is first asked for.

    What `make` raises is raised to whoever asks; the next one has it called again.
    """

    def __init__(self, make: Callable[[], Tree]) -> None:
        self._make = make
        self._made: Tree | None = None
        self._lock = threading.Lock()

    def get(self, path: bytes) -> Entry | None:
        return self._tree().get(path)

    def children(self, path: bytes) -> Sequence[bytes]:
        return self._tree().children(path)

    def open(self, path: bytes) -> BinaryIO:
        return self._tree().open(path)

    @property
    def is_made(self) -> bool:
        """Whether `make` has given the tree."""
        return self._made is not None

    def _tree(self) -> Tree:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made
