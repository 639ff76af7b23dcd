"""The files of an image, or of several, as one tar archive."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain

from pybuild.backend import Activity
from pybuild.export.newfiles import Sink
from pybuild.files.trees import NewEntry, Tree, walk
from pybuild.oci.compression import Compression
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layerwriter import write_layer
from pybuild.values import replace

PROGRESS_ITEM = "files"


def write_rootfs(tree: Tree, sink: Sink, newest: int | None, activity: Activity) -> None:
    """Write all files of `tree`: sorted, owners numeric, no name of the root itself.

    With `newest`, in seconds since 1970, later modification times become that one. Raises
    CopyFailed for a file that can't be read, BuildCancelled.
    """
    _write(_new_entries(tree), sink, newest, activity)


def write_rootfs_each(
    trees: Mapping[str, Tree], sink: Sink, newest: int | None, activity: Activity
) -> None:
    """Write the files of each tree as :func:`write_rootfs` does, in a folder of its own."""
    parts = [_in_folder(os.fsencode(name), tree, newest or 0) for name, tree in trees.items()]
    _write(chain.from_iterable(parts), sink, newest, activity)


def _write(entries: Iterable[NewEntry], sink: Sink, newest: int | None, activity: Activity) -> None:
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        activity.raise_if_cancelled()
        done += count
        activity.progress(PROGRESS_ITEM, done, None)

    write_layer(entries, sink, Compression.NONE, on_bytes, newest=newest)


def _new_entries(tree: Tree) -> Iterator[NewEntry]:
    for entry in walk(tree, b""):
        if entry.path:
            has_content = entry.kind is Kind.FILE and not entry.link
            yield NewEntry(entry, partial(tree.open, entry.path) if has_content else None)


def _in_folder(name: bytes, tree: Tree, made: int) -> Iterator[NewEntry]:
    yield NewEntry(Entry(name, Kind.DIRECTORY, 0o755, mtime=made), None)
    for new in _new_entries(tree):
        entry = new.entry
        is_hard_link = entry.kind is Kind.FILE and entry.link
        link = b"%s/%s" % (name, entry.link) if is_hard_link else entry.link
        yield replace(new, entry=replace(entry, path=b"%s/%s" % (name, entry.path), link=link))
