"""The folders of cache mounts of the memory backend."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from pybuild.backend import Activity, CacheMount, Mount, Sharing
from pybuild.files.mountsource import copied
from pybuild.files.trees import MemoryTree, NewEntry, Tree
from pybuild.oci.layerindex import Entry, Kind

_SECONDS_BETWEEN_LOOKS = 0.01


@dataclass(slots=True)
class _Slot:
    tree: Tree
    path: bytes = b""
    users: int = 0
    exclusive: bool = False


class MemoryCaches:
    """Gives each cache mount the tree that it shows. Safe in threads.

    Of two simulated processes at once the later one's files count.
    """

    def __init__(self) -> None:
        self._slots: dict[str, list[_Slot]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def shown(self, mounts: Sequence[Mount], activity: Activity) -> Iterator[_Shown]:
        """`mounts` with the files of their caches, held as long as the context lasts."""
        wanted = {m.ident: m for m in reversed(mounts) if isinstance(m, CacheMount)}
        with ExitStack() as stack:
            slots = {
                ident: stack.enter_context(self._held(wanted[ident], activity))
                for ident in sorted(wanted)
            }
            shown = [
                replace(m, tree=slots[m.ident].tree, path=slots[m.ident].path)
                if isinstance(m, CacheMount)
                else m
                for m in mounts
            ]
            yield _Shown(shown, slots)

    def entries(self, ident: str) -> list[NewEntry] | None:
        """The files of the cache's first folder, as entries below :data:`pybuild.files.mountsource.TOP`; None if there is none."""
        with self._lock:
            slots = self._slots.get(ident)
            return list(copied(slots[0].tree, slots[0].path, ident)) if slots else None

    @contextmanager
    def _held(self, mount: CacheMount, activity: Activity) -> Iterator[_Slot]:
        exclusive = mount.sharing is not Sharing.SHARED
        while True:
            with self._lock:
                slot = self._free(mount, exclusive=exclusive)
                if slot is not None:
                    slot.users += 1
                    slot.exclusive = exclusive
                    break
            activity.raise_if_cancelled()
            threading.Event().wait(_SECONDS_BETWEEN_LOOKS)
        try:
            yield slot
        finally:
            with self._lock:
                slot.users -= 1
                slot.exclusive = False

    def _free(self, mount: CacheMount, *, exclusive: bool) -> _Slot | None:
        slots = self._slots.setdefault(mount.ident, [])
        for slot in slots:
            if slot.users == 0 or not (exclusive or slot.exclusive):
                return slot
        if slots and mount.sharing is Sharing.LOCKED:
            return None
        slots.append(_begun(mount))
        return slots[-1]


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a process sees, and where to leave what it has made of the caches."""

    mounts: Sequence[Mount]
    slots: Mapping[str, _Slot]

    def keep(self, caches: Mapping[str, Sequence[NewEntry]]) -> None:
        """Keep the files of each cache, by its id; their paths are relative to it."""
        for ident, entries in caches.items():
            self.slots[ident].tree, self.slots[ident].path = MemoryTree(entries), b""


def _begun(mount: CacheMount) -> _Slot:
    if mount.tree is not None:
        return _Slot(mount.tree, mount.path)
    top = Entry(b"", Kind.DIRECTORY, mount.mode, mount.uid, mount.gid)
    return _Slot(MemoryTree([NewEntry(top)]))
