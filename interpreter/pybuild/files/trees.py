"""The Tree interface: a file system that can be read without being mounted.

A tree is a build context, an image, a stage, or a few files in memory. The COPY rules,
USER lookup and mount sources are written once against it. Paths are raw bytes relative to
the tree's root, without a leading slash; the root is ``b""``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from pybuild.oci.layerindex import Entry


class Tree(ABC):
    """A read-only file system. Safe to use from several threads."""

    @abstractmethod
    def get(self, path: bytes) -> Entry | None:
        """The entry at exactly `path`, following no symlink anywhere; None if there is none.

        A parent that is a symlink is not followed either: use :func:`resolve` first.
        """

    @abstractmethod
    def children(self, path: bytes) -> Sequence[bytes]:
        """The names directly below the folder `path`, sorted; empty if it is no folder."""

    @abstractmethod
    def open(self, path: bytes) -> BinaryIO:
        """The content of the regular file at exactly `path`. The caller closes it.

        Reading past what :meth:`get` gave as its size, or short of it, raises
        :class:`~pybuild.errors.ContextError`: the file changed meanwhile.
        """


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An entry to be put into a layer. ``content`` opens a FILE's bytes, ``entry.size`` long.

    It is None for everything else, and for hard links.
    """

    entry: Entry
    content: Callable[[], BinaryIO] | None = None
