"""The digests of files that a step reads, where they aren't known yet."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from hashlib import sha256

from pybuild.backend import Activity
from pybuild.files.safepath import ExactReader
from pybuild.files.trees import NewEntry, Tree, walk
from pybuild.oci.layerindex import Entry, Kind
from pybuild.values import replace

_CHUNK = 1 << 20


def digested(tree: Tree, path: bytes, activity: Activity | None = None) -> Iterator[Entry]:
    """The entry at `path` and all below it, each regular file with its digest."""
    for entry in walk(tree, path):
        yield with_digest(NewEntry(entry, partial(tree.open, entry.path)), activity)


def with_digest(new: NewEntry, activity: Activity | None = None) -> Entry:
    """The entry, which is read if it is a regular file without a digest.

    Raises BuildCancelled in the middle of it.
    """
    entry = new.entry
    if entry.kind is not Kind.FILE or entry.digest is not None or new.content is None:
        return entry
    digest = sha256()
    with new.content() as stream:
        while chunk := stream.read(_CHUNK):
            if activity is not None:
                activity.raise_if_cancelled()
            digest.update(chunk)
        found = f"sha256:{digest.hexdigest()}"
        if isinstance(stream, ExactReader) and stream.on_digest is not None:
            stream.on_digest(found)
    return replace(entry, digest=found)
