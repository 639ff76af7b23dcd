"""What a process changed in a snapshot, as the entries of a layer.

The upper folder of an overlay is walked where this process can read it and every option of
the mount is known. Otherwise containerd's diff service compares the snapshot with its parent.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from pybuild.backend import Activity
from pybuild.files.trees import NewEntry, Tree
from pybuild.files.upperdir import OverlayNotPlain, upper_entries
from pybuild.oci.descriptor import OCI_LAYER_GZIP, Descriptor, LayerDiff
from pybuild.oci.layerindex import Entry, Kind, LayerIndex
from pybuild.oci.layertar import read_index
from pybuild.values import dataclass, replace
from pybuild_containerd import rpcs
from pybuild_containerd.activation import activated
from pybuild_containerd.mountpoints import untouched_stubs
from pybuild_containerd.snapshots import Mount, layer_folders
from pybuild_containerd.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes, either as ``entries`` or as a layer that is ``written`` already.

    ``whole`` says that the snapshot holds just these, so that it can be committed as it is.
    """

    whole: bool
    entries: Iterable[NewEntry] = ()
    written: LayerDiff | None = None


def changes_of(
    space: Workspace,
    chain: str,
    parent: Tree,
    mounts: tuple[Mount, ...],
    activity: Activity,
    *,
    missing: Sequence[Entry],
    newest: int | None = None,
) -> Changes:
    """What an active snapshot with these mounts changed over `chain`, whose tree is `parent`.

    Of the `missing` entries, those that a runtime made and nobody used are left out.
    `newest` is as in :meth:`pybuild.backend.ROLayer.begin`.
    """
    upper = _readable_upper(space, chain, mounts)
    if upper is not None:
        # what refers to lower files is compared by containerd, which can mount it
        with contextlib.suppress(OverlayNotPlain):
            stubs = untouched_stubs(upper, missing)
            entries = upper_entries(upper, parent, stubs, newest=newest)
            return Changes(whole=not stubs, entries=entries)
    written, index = _compared(space, chain, mounts, activity)
    stubs = _stubs_in(index, missing)
    # containerd stamps whiteouts with the time of the comparison, so equal steps would differ
    late = newest is not None and any(entry.mtime > newest for entry in index)
    if stubs or late or any(entry.kind is Kind.WHITEOUT for entry in index):
        entries = _without(space, written, index, stubs, parent)
        return Changes(whole=not stubs, entries=entries)
    return Changes(whole=True, written=written if len(index) else None)


def _readable_upper(space: Workspace, chain: str, mounts: tuple[Mount, ...]) -> Path | None:
    """The folder that has the changes and nothing else, if this process can read it."""
    folders = layer_folders(mounts)
    if not space.reads_snapshots or folders is None or folders.upper is None or folders.unknown:
        return None
    # a bind on a parent is a snapshotter's full copy
    if chain and not folders.lowers:
        return None
    return Path(folders.upper)


def _compared(
    space: Workspace, chain: str, mounts: tuple[Mount, ...], activity: Activity
) -> tuple[LayerDiff, LayerIndex]:
    """Have containerd write the layer, and read it back for its index."""
    key = f"pybuild-{secrets.token_hex(16)}"
    below = space.snapshots.view(key, chain) if chain else ()
    try:
        with activated(space.client, below) as left, activated(space.client, mounts) as right:
            made = space.client.call(
                rpcs.DIFF_DIFF,
                activity=activity,
                left=[mount.fields() for mount in left],
                right=[mount.fields() for mount in right],
                media_type=OCI_LAYER_GZIP,
                ref=key,
            ).diff
    finally:
        if chain:
            space.snapshots.remove(key)
    with space.content.open(made.digest) as blob:
        diff_id, index = read_index(blob)
    layer = LayerDiff(diff_id, Descriptor(OCI_LAYER_GZIP, made.digest, made.size))
    space.files.remember(diff_id, index)
    return layer, index


def _stubs_in(index: LayerIndex, missing: Sequence[Entry]) -> frozenset[bytes]:
    """Which of the `missing` entries a layer has, still empty."""
    stubs: set[bytes] = set()
    for entry in sorted(missing, key=lambda e: e.path, reverse=True):
        found = index.get(entry.path)
        if found is None or found.kind is not entry.kind or found.size:
            continue
        if {entry.path + b"/" + name for name in index.children(entry.path)} <= stubs:
            stubs.add(entry.path)
    return frozenset(stubs)


def _without(
    space: Workspace,
    layer: LayerDiff,
    index: LayerIndex,
    stubs: frozenset[bytes],
    parent: Tree,
) -> Iterator[NewEntry]:
    """The layer's entries but the stubs, and folders that only the stubs had touched."""
    touched = {path.rpartition(b"/")[0] for path in stubs}
    for entry in index:
        if entry.path in stubs or (entry.path in touched and _only_newer(entry, parent)):
            continue
        if entry.kind is Kind.FILE and not entry.link:
            yield NewEntry(entry, _Opener(space, layer, entry))
        else:
            yield NewEntry(entry)


def _only_newer(entry: Entry, parent: Tree) -> bool:
    before = parent.get(entry.path)
    return before is not None and replace(entry, mtime=before.mtime) == before


@dataclass(frozen=True, slots=True)
class _Opener:
    """Opens a file's content in a layer."""

    space: Workspace
    layer: LayerDiff
    entry: Entry

    def __call__(self) -> BinaryIO:
        return self.space.files.open(self.layer, self.entry)
