"""The files of an image as one tar archive."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pybuild.backend import Activity
from pybuild.export.newfiles import Sink
from pybuild.files.trees import NewEntry, Tree, walk
from pybuild.oci.compression import Compression
from pybuild.oci.layerindex import Kind
from pybuild.oci.layertar import write_layer

PROGRESS_ITEM = "files"


def write_rootfs(tree: Tree, sink: Sink, newest: int | None, activity: Activity) -> None:
    """Write all files of `tree`: sorted, owners numeric, no name of the root itself.

    With `newest`, in seconds since 1970, later modification times become that one. Raises
    CopyFailed for a file that can't be read, BuildCancelled.
    """
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        activity.raise_if_cancelled()
        done += count
        activity.progress(PROGRESS_ITEM, done, None)

    write_layer(_new_entries(tree), sink, Compression.NONE, on_bytes, newest)


def _new_entries(tree: Tree) -> Iterator[NewEntry]:
    for entry in walk(tree, b""):
        if entry.path:
            has_content = entry.kind is Kind.FILE and not entry.link
            yield NewEntry(entry, partial(tree.open, entry.path) if has_content else None)
