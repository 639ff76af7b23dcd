"""The folders of cache mounts, kept in the store from build to build."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from pybuild.backend import Activity, CacheMount, Mount
from pybuild.cacheslots import CacheSlots
from pybuild.files.mountsource import TOP, copied
from pybuild.files.trees import NewEntry
from pybuild.oci.layerindex import Entry, Kind
from pybuild_embedded.filling import fill
from pybuild_embedded.folders import LayerFolder
from pybuild_embedded.space import Space

_COMPLETE = "complete"


@contextmanager
def taken_caches(
    space: Space, mounts: Sequence[Mount], activity: Activity
) -> Iterator[dict[str, bytes]]:
    """The path of the folder of each cache in `mounts`, by its id.

    Others use them meanwhile only as the mounts allow. Raises BuildCancelled.
    """
    caches = {m.ident: m for m in reversed(mounts) if isinstance(m, CacheMount)}
    if not caches:
        yield {}
        return
    # the files of one mapping of ids are worth nothing under another
    names = {ident: f"{space.machine.flavour} {ident}" for ident in caches}
    slots = CacheSlots(space.store.root / "locks")
    wanted = {names[ident]: mount.sharing for ident, mount in caches.items()}
    with slots.taken(wanted, activity.raise_if_cancelled) as taken:
        yield {
            ident: _complete(space, f"{taken[names[ident]]} {names[ident]}", mount, activity)
            for ident, mount in caches.items()
        }


def _complete(space: Space, name: str, mount: CacheMount, activity: Activity) -> bytes:
    """The cache's folder, filled if nobody has done so yet."""
    with space.store.single_flight(f"fill cache {name}", activity):
        folder: LayerFolder = space.store.cache_folder(name)
        complete = folder.path / _COMPLETE
        if not complete.exists():
            # what a killed build may have left of it
            space.machine.workers().remove([*folder.fs.iterdir()])
            fill(space, folder, _first_entries(mount), activity)
            complete.touch(mode=0o600)
    return bytes(folder.fs) + b"/" + TOP


def _first_entries(mount: CacheMount) -> Iterable[NewEntry]:
    if mount.tree is not None:
        return copied(mount.tree, mount.path, mount.target)
    return [NewEntry(Entry(TOP, Kind.DIRECTORY, mount.mode, mount.uid, mount.gid))]
