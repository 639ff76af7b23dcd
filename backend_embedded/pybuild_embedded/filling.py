"""Folders filled with entries as a layer's folder is: owners and modes are those of the sandbox."""

from __future__ import annotations

from collections.abc import Iterable

from pybuild.backend import Activity
from pybuild.files.trees import NewEntry
from pybuild.oci.compression import Compression
from pybuild.oci.layerwriter import write_layer
from pybuild_embedded.folders import LayerFolder
from pybuild_embedded.space import Space
from pybuild_embedded.workers import Unpack


def fill(
    space: Space, folder: LayerFolder, entries: Iterable[NewEntry], activity: Activity
) -> None:
    """Make the entries in ``folder.fs``, which is empty."""
    store = space.store
    blob, index = store.new_file(), store.new_file()
    try:
        with blob.open("xb") as file:

            def sink(piece: bytes) -> None:
                activity.raise_if_cancelled()
                file.write(piece)

            layer = write_layer(entries, sink, Compression.NONE)
        index.write_bytes(layer.index.to_bytes())
        space.machine.workers().unpack(
            Unpack(
                blob=blob,
                diff_id=layer.diff.diff_id,
                index=index,
                parents=(),
                lowers=(),
                target=folder.fs,
                userxattr=space.machine.mapping().userxattr,
                owners=space.machine.keeps_owners,
            )
        )
    finally:
        blob.unlink(missing_ok=True)
        index.unlink(missing_ok=True)
