"""Writes what a step changed as a layer: blob and index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pybuild.files.trees import NewEntry
from pybuild.files.upperdir import upper_entries
from pybuild.oci.layerwriter import write_layer
from pybuild.unpacking.failures import translated
from pybuild.unpacking.removing import Allocated
from pybuild_embedded.inside.indexes import Indexes
from pybuild_embedded.requests import Pack, Packed

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def pack(request: Pack, indexes: Indexes) -> Packed | None:
    """See `Workers.pack`. Raises OSError."""
    allocated = Allocated()
    if request.record is None:
        entries = list(_overlay_entries(request, indexes, allocated))
    else:
        entries = list(_compared_entries(request, request.record, indexes))
    if not entries:
        return None
    made: list[Path] = []
    try:
        with os.fdopen(_new_file(request.blob, made), "wb") as blob:

            def sink(piece: bytes) -> None:
                # an OSError would be taken for one of reading a file
                with translated("write the layer", request.blob.parent):
                    blob.write(piece)

            layer = write_layer(entries, sink, request.compression)
        with os.fdopen(_new_file(request.index, made), "wb") as file:
            file.write(layer.index.to_bytes())
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise
    return Packed(layer.diff, allocated.size)


def _overlay_entries(request: Pack, indexes: Indexes, allocated: Allocated) -> Iterator[NewEntry]:
    allocated.add(request.upper.lstat())
    if not any(request.upper.iterdir()):
        return iter(())  # without a look at the layers below
    return upper_entries(
        request.upper,
        indexes.tree(request.parents),
        newest=request.newest,
        owners=request.owners,
        fuse=request.fuse,
        on_status=allocated.add,
    )


def _compared_entries(request: Pack, record: Path, indexes: Indexes) -> Iterator[NewEntry]:
    from pybuild.files.comparing import (  # noqa: PLC0415 - without overlays
        compared_entries,
        record_from_bytes,
    )

    return compared_entries(
        request.upper,
        record_from_bytes(record.read_bytes()),
        indexes.tree(request.parents),
        newest=request.newest,
        owners=request.owners,
    )


def _new_file(path: Path, made: list[Path]) -> int:
    fd = os.open(path, _NEW_FILE, 0o600)
    made.append(path)
    return fd
