"""The folders of cache mounts: snapshots that are never committed, kept from build to build.

Their names come from the caches' ids. A label keeps such a snapshot from the garbage
collector; it gets that once the folder is complete, so that what a killed build has begun
goes with its lease. Locks on files tell who uses one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from pybuild.backend import Activity, CacheMount, Mount, Sharing
from pybuild.cacheslots import CacheSlots
from pybuild.files.mountsource import TOP, copied
from pybuild.files.trees import NewEntry
from pybuild.oci.layerindex import Entry, Kind
from pybuild_containerd.client import Client
from pybuild_containerd.errors_table import NotFound
from pybuild_containerd.snapshots import Mount as SnapshotMount
from pybuild_containerd.snapshots import Snapshots, bound_folder

CACHE_LABEL = "pybuild/cache-mount"
"""On the snapshot of a cache mount: the beginning of its id, in quotes."""

_KEPT = "containerd.io/gc.root"
_LONGEST_LABEL = 200


class _MakeFolder(Protocol):
    def __call__(
        self, entries: Iterable[NewEntry], activity: Activity, *, key: str
    ) -> tuple[str, str]: ...


class CacheFolders:
    """Finds or makes the folders of cache mounts. Safe in threads."""

    def __init__(
        self, client: Client, snapshots: Snapshots, make: _MakeFolder, locks: Path
    ) -> None:
        """`make` makes an active snapshot with some entries; its key, and its folder.

        `locks` is a folder that all processes share which wait for each other.
        """
        self._locks = locks
        self._snapshots = snapshots
        self._make = make
        # the daemon's other namespaces and snapshotters have other folders
        self._place = f"{client.address}\0{client.namespace}\0{snapshots.snapshotter}"

    @contextmanager
    def taken(self, mounts: Sequence[Mount], activity: Activity) -> Iterator[dict[str, str]]:
        """The folder, where containerd runs, of each cache in `mounts` by its id.

        Others use them meanwhile only as the mounts allow. Raises BuildCancelled.
        """
        caches = {m.ident: m for m in reversed(mounts) if isinstance(m, CacheMount)}
        if not caches:
            yield {}
            return
        self._locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        slots = CacheSlots(self._locks)
        wanted = {self._name(ident): mount.sharing for ident, mount in caches.items()}
        with slots.taken(wanted, activity.raise_if_cancelled) as taken:
            yield {
                ident: self._folder(mount, taken[self._name(ident)], slots, activity)
                for ident, mount in caches.items()
            }

    @contextmanager
    def first(self, ident: str, activity: Activity) -> Iterator[tuple[SnapshotMount, ...] | None]:
        """The mounts of the first folder of a cache, which nobody uses meanwhile; None if there is none.

        Raises BuildCancelled.
        """
        self._locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        wanted = {self._name(ident): Sharing.LOCKED}
        with CacheSlots(self._locks).taken(wanted, activity.raise_if_cancelled):
            yield self._mounts(_key(ident, 0))

    def _name(self, ident: str) -> str:
        return f"{self._place}\0{ident}"

    def _folder(self, mount: CacheMount, slot: int, slots: CacheSlots, activity: Activity) -> str:
        key = _key(mount.ident, slot)
        making = f"making {slot} {self._name(mount.ident)}"
        with slots.taken({making: Sharing.LOCKED}, activity.raise_if_cancelled):
            mounts = self._mounts(key)
            if mounts is not None:
                folder = bound_folder(mounts)
            else:
                self._snapshots.remove(key)  # what a killed build may have left of it
                _, folder = self._make(_first_entries(mount), activity, key=key)
                shown = _bytes(mount.ident)[:_LONGEST_LABEL].decode("utf-8", "replace")
                # containerd takes an empty value for none
                labels = {CACHE_LABEL: f'"{shown}"', _KEPT: datetime.now(UTC).isoformat()}
                self._snapshots.update_labels(key, labels)
        return f"{folder}/{TOP.decode()}"

    def _mounts(self, key: str) -> tuple[SnapshotMount, ...] | None:
        """Those of a folder that is complete; None if there is none."""
        try:
            if CACHE_LABEL not in self._snapshots.stat(key).labels:
                return None
            return self._snapshots.mounts(key)
        except NotFound:
            return None


def _key(ident: str, slot: int) -> str:
    return f"pybuild-cache-{sha256(_bytes(ident)).hexdigest()}-{slot}"


def _bytes(ident: str) -> bytes:
    return ident.encode("utf-8", "surrogateescape")


def _first_entries(mount: CacheMount) -> Iterable[NewEntry]:
    if mount.tree is not None:
        return copied(mount.tree, mount.path, mount.target)
    return [NewEntry(Entry(TOP, Kind.DIRECTORY, mount.mode, mount.uid, mount.gid))]
