"""The cache key of a step once its files are known: plan key, parent's key, file digests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from typing import BinaryIO

from pybuild.backend import Activity, BindMount
from pybuild.files.trees import NewEntry, Tree, walk
from pybuild.oci.layerindex import Entry, Kind
from pybuild.plan.cachekey import chained_key, copy_key, mount_key
from pybuild.plan.steps import Step
from pybuild.run.execute import Prepared, PreparedFiles

_CHUNK = 1 << 20


def content_key(step: Step, parent: str, prepared: Prepared, activity: Activity) -> str:
    """The key under which the layer that `step` makes is kept and found.

    Reads every file whose digest isn't known yet. Raises BuildCancelled.
    """
    if isinstance(prepared, PreparedFiles):
        entries = (_digested(new, activity) for new in prepared.entries)
        return copy_key(step.key, entries, parent=parent)
    files = {
        mount.target: _below(mount.tree, mount.path, activity)
        for mount in prepared.mounts
        if isinstance(mount, BindMount)
    }
    if not files:
        return chained_key(step.key, parent)
    return mount_key(step.key, files, parent=parent)


def _below(tree: Tree, path: bytes, activity: Activity) -> Iterator[Entry]:
    for entry in walk(tree, path):
        yield _digested(NewEntry(entry, _opener(tree, entry.path)), activity)


def _opener(tree: Tree, path: bytes) -> Callable[[], BinaryIO]:
    return lambda: tree.open(path)


def _digested(new: NewEntry, activity: Activity) -> Entry:
    entry = new.entry
    if entry.kind is not Kind.FILE or entry.digest is not None or new.content is None:
        return entry
    digest = sha256()
    with new.content() as stream:
        while chunk := stream.read(_CHUNK):
            activity.raise_if_cancelled()
            digest.update(chunk)
    return replace(entry, digest=f"sha256:{digest.hexdigest()}")
