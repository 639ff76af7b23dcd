"""Makes a layer's files in a snapshot of overlayfs, as containerd's diff service would."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pybuild.backend import Activity
from pybuild.errors import BackendFailed, InvalidImage
from pybuild.files.layertree import LayerTree
from pybuild.files.trees import parent_of
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.layerindex import Entry, Kind, LayerIndex
from pybuild.values import dataclass, replace
from pybuild_containerd.snapshots import LayerFolders, Mount, in_user_namespace, layer_folders

if TYPE_CHECKING:
    from pybuild.unpacking.layerplan import LayerPlan

OPAQUE = "trusted.overlay.opaque"
"""The attribute of a folder that hides lower ones."""

# what containerd sets and an index leaves out
_LEFT_OUT = re.compile(
    rb"SCHILY\.xattr\."
    rb"(?!user\.(?!fuseoverlayfs\.|containers\.)|security\.capability=|trusted\.)"
)
_LONGEST = len(b"SCHILY.xattr.user.fuseoverlayfs.") + 1
TIMES = range(2**63 // 10**9)
"""In seconds since 1970; containerd makes 1970 of others."""


@dataclass(frozen=True, slots=True)
class Stacked:
    """A layer on `count` others: its index, the view of those, and the one with it on top."""

    layer: LayerDiff
    index: LayerIndex
    count: int
    below: LayerTree
    tree: LayerTree


class NotFilled(Exception):
    """The files are left to containerd; the snapshot's folder is empty still."""


def writable_folders(mounts: Sequence[Mount], count: int) -> LayerFolders | None:
    """The folders of an active snapshot on `count` layers, if all that it shows is in them.

    None for what isn't a plain overlay, or a plain folder if there are no layers below.
    """
    folders = layer_folders(mounts)
    if folders is None or folders.upper is None or folders.unknown or in_user_namespace(mounts):
        return None
    # a bind on a parent is a snapshotter's full copy
    return None if bool(count) != bool(folders.lowers) else folders


def fill(
    stacked: Stacked,
    mounts: Sequence[Mount],
    open_blob: Callable[[str], BinaryIO],
    activity: Activity,
) -> None:
    """Make a layer's files in the empty active snapshot with these mounts.

    It then holds what containerd's diff service would have put there, with these differences:
    whiteouts are root's, and only where they hide something; folders that the layer only
    implies have the times of those below, or 1970; times have no fractions of a second; of
    hard links the first has the owner, mode, time and attributes of all, and second names of
    what is no regular file are files of their own.

    Raises NotFilled for what is left to containerd, which also says what is wrong with a
    layer, and BackendFailed if the disk is full.
    """
    from pybuild.unpacking.contents import finish_layer, make_files  # noqa: PLC0415 - for a snapshot
    from pybuild.unpacking.failures import is_full, translated  # noqa: PLC0415 - as above
    from pybuild.unpacking.making import Making, make_copies  # noqa: PLC0415 - as above
    from pybuild.unpacking.removing import clear  # noqa: PLC0415 - as above

    folders = writable_folders(mounts, stacked.count)
    if folders is None or folders.upper is None:
        raise NotFilled
    plan = planned(stacked)
    if plan.lower_files and len(folders.lowers) != stacked.count:
        raise NotFilled
    upper = Path(folders.upper)
    lowers = tuple(map(Path, reversed(folders.lowers)))
    attributes = Attributes()

    def observe(piece: bytes) -> None:
        activity.raise_if_cancelled()
        attributes.look(piece)

    try:
        with (
            translated("unpack the layer", upper),
            Making(upper, owners=True, devices=True) as making,
            open_blob(stacked.layer.blob.digest) as blob,
        ):
            making.folders(plan.folders)
            make_files(blob, stacked.layer.diff_id, plan, making, observe)
            make_copies(making, plan.lower_files, lowers, len(lowers))
            finish_layer(plan, making, opaque=OPAQUE)
    except (InvalidImage, BackendFailed, NotFilled) as error:
        if isinstance(error.__cause__, OSError) and is_full(error.__cause__):
            raise
        with translated("unpack the layer", upper):
            clear(upper)
        raise NotFilled from error


def planned(stacked: Stacked) -> LayerPlan:
    """What to make. Raises NotFilled if containerd would make something else."""
    from pybuild.unpacking.layerplan import plan_layer  # noqa: PLC0415 - for a snapshot

    index = stacked.index
    if not all(_is_plain(entry, stacked) for entry in index):
        raise NotFilled
    try:
        plan = plan_layer(index, stacked.tree, stacked.below)
    except InvalidImage as error:
        raise NotFilled from error
    # the root's own attributes are the snapshotter's
    folders = plan.folders[1:]
    if not all(index.get(each.path) or _is_implied(each, stacked) for each in folders):
        raise NotFilled
    return replace(plan, folders=folders)


def _is_implied(folder: Entry, stacked: Stacked) -> bool:
    """Whether containerd gives these attributes to a folder without an entry."""
    if stacked.count:
        # of one that no layer tells, or nothing below shows, it finds what lower layers hide
        path = folder.path
        told = (index.get(path) for index in reversed(stacked.below.indexes))
        last = next((entry for entry in told if entry is not None), None)
        return last == folder == stacked.below.get(path)
    # such a parent gives it its group
    parent = stacked.index.get(parent_of(folder.path))
    return parent is None or not parent.mode & stat.S_ISGID


def _is_plain(entry: Entry, stacked: Stacked) -> bool:
    """Whether containerd makes of an entry what the index says."""
    match entry.kind:
        case Kind.WHITEOUT:
            # it merges a folder with the one that it replaces
            index = stacked.index
            return index.get(entry.path) is None and not index.has_below(entry.path)
        case Kind.OPAQUE:
            return bool(entry.path and stacked.count)
        case Kind.FILE | Kind.DIRECTORY:
            return entry.mtime in TIMES
        case Kind.SYMLINK | Kind.CHARACTER | Kind.BLOCK | Kind.FIFO | Kind.SOCKET:
            return entry.mtime in TIMES and not entry.xattrs


class Attributes:
    """Looks through a tar for attributes that its index leaves out."""

    def __init__(self) -> None:
        self._end = b""

    def look(self, piece: bytes) -> None:
        """Raise NotFilled if there may be one."""
        text = self._end + piece
        sure = len(text) - _LONGEST
        if any(found.start() <= sure for found in _LEFT_OUT.finditer(text)):
            raise NotFilled
        self._end = text[max(0, sure + 1) :]
