"""The source of a bind mount as the entries of a layer of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

from pybuild.errors import StepFailed
from pybuild.files.trees import NewEntry, Tree, walk
from pybuild.oci.layerindex import Entry, Kind
from pybuild.values import replace

TOP = b"m"
"""What the source is called in that layer."""


def source_entry(tree: Tree, path: bytes, target: str) -> Entry:
    """The folder or file at `path`; a root need not have an entry. Raises StepFailed for others.

    `target` is where it is to be mounted, for the message.
    """
    entry = tree.get(path)
    if entry is None and not path:
        entry = Entry(b"", Kind.DIRECTORY, 0o755)
    name = os.fsdecode(path)
    if entry is None:
        raise StepFailed(f"the source /{name} of the mount at {target} doesn't exist")
    if entry.kind not in (Kind.DIRECTORY, Kind.FILE):
        raise StepFailed(f"the source /{name} of the mount at {target} is a {entry.kind.value}")
    return entry


def copied(tree: Tree, path: bytes, target: str) -> Iterator[NewEntry]:
    """The source and all below it, as entries at and below :data:`TOP`."""
    first_names: dict[bytes, bytes] = {}
    yield _moved(tree, path, source_entry(tree, path, target), first_names)
    for entry in walk(tree, path):
        if entry.path != path and entry.kind is not Kind.SOCKET:
            yield _moved(tree, path, entry, first_names)


def _moved(tree: Tree, top: bytes, entry: Entry, first_names: dict[bytes, bytes]) -> NewEntry:
    below = entry.path[len(top) :].lstrip(b"/")
    path = TOP + b"/" + below if below else TOP
    if entry.kind is not Kind.FILE:
        return NewEntry(replace(entry, path=path))
    # the name that others link to may lie outside the source: the first that is inside stands for it
    first = first_names.setdefault(entry.link or entry.path, path)
    if first != path:
        return NewEntry(replace(entry, path=path, link=first))
    return NewEntry(replace(entry, path=path, link=b""), partial(tree.open, entry.path))
