"""The folders of cache mounts, kept in the store from build to build."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pybuild.backend import Activity, CacheMount, Mount, Sharing
from pybuild.cacheslots import CacheSlots
from pybuild.files.mountsource import TOP, copied
from pybuild.files.trees import NewEntry
from pybuild.oci import http
from pybuild.oci.compression import Compression
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.layerindex import Entry, Kind
from pybuild_embedded.filling import fill
from pybuild_embedded.folders import LayerFolder
from pybuild_embedded.space import Space
from pybuild_embedded.workers import Pack

_COMPLETE = "complete"


@contextmanager
def taken_caches(
    space: Space, mounts: Sequence[Mount], activity: Activity
) -> Iterator[dict[str, bytes]]:
    """The path of the folder of each cache in `mounts`, by its id.

    Others use them meanwhile only as the mounts allow. Raises BuildCancelled.
    """
    caches = {m.ident: m for m in reversed(mounts) if isinstance(m, CacheMount)}
    names = {ident: _name(space, ident) for ident in caches}
    slots = _slots(space)
    wanted = {names[ident]: mount.sharing for ident, mount in caches.items()}
    with slots.taken(wanted, activity.raise_if_cancelled) as taken:
        yield {
            ident: _complete(space, _folder_name(taken, names[ident]), mount, activity)
            for ident, mount in caches.items()
        }


def packed_cache(space: Space, ident: str, activity: http.Activity) -> LayerDiff | None:
    """The first folder of a cache as a layer, its blob in the store; None if there is none.

    Waits until nobody uses it. Raises BuildCancelled, CopyFailed, BackendFailed.
    """
    name = _name(space, ident)
    store = space.store
    with _slots(space).taken({name: Sharing.LOCKED}, activity.raise_if_cancelled) as taken:
        folder = store.known_cache_folder(_folder_name(taken, name))
        if folder is None or not (folder.path / _COMPLETE).exists():
            return None
        request = Pack(
            upper=folder.fs,
            parents=(),
            blob=store.new_file(),
            index=store.new_file(),
            newest=None,
            owners=space.machine.keeps_owners,
            compression=Compression.GZIP,
        )
        packed = space.machine.workers().pack(request).result()
    if packed is None:
        return None
    request.index.unlink(missing_ok=True)
    store.adopt_blob(request.blob, packed.diff.blob.digest, packed.diff.blob.size)
    return packed.diff


def _slots(space: Space) -> CacheSlots:
    return CacheSlots(space.store.root / "locks")


def _name(space: Space, ident: str) -> str:
    # the files of one mapping of ids are worth nothing under another
    return f"{space.machine.flavour} {ident}"


def _folder_name(taken: Mapping[str, int], name: str) -> str:
    return f"{taken[name]} {name}"


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
