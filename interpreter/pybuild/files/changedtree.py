"""A tree whose newest layer is still a folder that nobody has read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from pybuild.files.foundentries import FoundEntries, same_attributes
from pybuild.files.latertree import LaterTree
from pybuild.files.safepath import Listed, Root
from pybuild.files.trees import Tree, join
from pybuild.oci.layerindex import Entry, Kind
from pybuild.values import replace


class ChangedTree(LaterTree):
    """The tree that `make` gives, made when it may differ from `below` at what is asked for.

    `upper` is the folder of changes of an overlay mount that has ended, as the kernel writes
    it; it may go once `make` has returned. `below` is asked each time, so that it may come to
    know more. `owner` gives the numbers of a user and a group in the layers for those that a file
    here has, None for others' files; without it, owners mean nothing here.
    """

    def __init__(
        self,
        make: Callable[[], Tree],
        below: Callable[[], Tree],
        upper: Path,
        *,
        owner: Callable[[int, int], tuple[int, int] | None] | None,
    ) -> None:
        super().__init__(make)
        self._below = below
        self._upper = upper
        self._owner = owner
        self._unchanged: dict[bytes, bool] = {}  # by path, of those asked for

    def get(self, path: bytes) -> Entry | None:
        below = self._unless_changed(path)
        return super().get(path) if below is None else below.get(path)

    def open(self, path: bytes) -> BinaryIO:
        below = self._unless_changed(path)
        return super().open(path) if below is None else below.open(path)

    def _unless_changed(self, path: bytes) -> Tree | None:
        """The tree below, if it has at `path` what this one has."""
        if self.is_made:
            return None
        below = self._below()
        unchanged = self._unchanged.get(path)
        if unchanged is None:
            try:
                with Root(self._upper) as root:
                    unchanged = self._shows(root, below, path)
            except OSError:  # something but a folder, or one that this user may not look into
                unchanged = False
            self._unchanged[path] = unchanged
        return below if unchanged else None

    def _shows(self, root: Root, below: Tree, path: bytes) -> bool:
        found = FoundEntries(root, newest=None, owners=self._owner is not None)
        place = b""
        for name in path.split(b"/"):
            place = join(place, name)
            try:
                item = root.status(place)
            except FileNotFoundError:
                return True
            before = below.get(place)
            entry = found.entry(place, item, before)
            if before is None or before.kind is not Kind.DIRECTORY or _is_marked(item):
                return False
            if entry is None or not self._has_attributes(entry, before):
                return False
        return True

    def _has_attributes(self, entry: Entry, before: Entry) -> bool:
        if self._owner is None:
            return same_attributes(entry, before)
        owner = self._owner(entry.uid, entry.gid)
        if owner is None:
            return False
        return same_attributes(replace(entry, uid=owner[0], gid=owner[1]), before)


def _is_marked(item: Listed) -> bool:
    """Whether a folder hides what is below it, or shows it from another place."""
    return any(name.endswith((".opaque", ".redirect")) for name, _ in item.xattrs)
