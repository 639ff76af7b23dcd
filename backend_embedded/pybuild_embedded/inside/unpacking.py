"""Unpacks a layer: one pass over its blob, led by its index, never by what the tar says."""

from __future__ import annotations

import os
from functools import partial
from hashlib import sha256
from pathlib import Path

from pybuild.errors import InvalidImage
from pybuild.oci.compression import CHUNK, Decompressed
from pybuild.oci.readahead import ReadAhead
from pybuild_embedded.inside.indexes import Indexes
from pybuild_embedded.inside.layerplan import LayerPlan, plan_layer
from pybuild_embedded.inside.making import Making, make_copies
from pybuild_embedded.requests import Unpack


def unpack(request: Unpack, indexes: Indexes) -> int:
    """See `Workers.unpack`. Raises OSError for what isn't about one entry."""
    index = indexes.get(request.index)
    below = indexes.tree(request.parents)
    tree = indexes.tree((*request.parents, request.index))
    plan = plan_layer(index, tree, below)
    with Making(request.target, owners=request.owners, devices=not request.userxattr) as making:
        making.folders(plan.folders)
        if request.plain is None:
            make_files(request.blob, request.diff_id, plan, making)
        else:
            copy_files(request.plain, plan, making)
        make_copies(making, plan.lower_files, request.lowers, len(request.parents))
        for entry in plan.others:
            if not making.other(entry) and entry.path in plan.covered:
                making.whiteout(entry.path)
        for path in plan.whiteouts:
            making.whiteout(path)
        space = "user" if request.userxattr else "trusted"
        making.settle(plan.folders, plan.opaque, f"{space}.overlay.opaque")
        return making.allocated


def make_files(path: Path, diff_id: str, plan: LayerPlan, making: Making) -> None:
    """Make the files of a layer with the content that its blob, at `path`, has.

    Raises InvalidImage if that isn't the one with this diff id.
    """
    whole = sha256()
    with (
        path.open("rb", buffering=0) as blob,
        Decompressed(blob) as plain,
        ReadAhead(plain, whole.update) as ahead,
    ):
        content = _Content(ahead)
        for offset, entries in plan.files:
            making.file(entries, partial(content.write, offset, entries[0].size))
        content.finish()
        if f"sha256:{whole.hexdigest()}" != diff_id:
            raise InvalidImage(f"the blob {path.name} doesn't hold {diff_id}")


def copy_files(path: Path, plan: LayerPlan, making: Making) -> None:
    """As :func:`make_files`, from a plain tar that was checked before."""
    with path.open("rb", buffering=0) as plain:
        source = plain.fileno()
        for offset, entries in plan.files:
            making.file(entries, partial(_copy, source, offset, entries[0].size))


def _copy(source: int, offset: int, size: int, fd: int) -> None:
    """Write `size` bytes of the open file `source`, from `offset` on, to `fd`."""
    end = offset + size
    while offset < end:
        piece = os.pread(source, min(end - offset, CHUNK), offset)
        if not piece:
            raise InvalidImage("the layer's copy ends too early")
        offset += len(piece)
        left = memoryview(piece)
        while left:
            left = left[os.write(fd, left) :]


class _Content:
    """The uncompressed tar, read once."""

    def __init__(self, plain: ReadAhead) -> None:
        self._plain = plain
        self._ahead = memoryview(b"")
        self._position = 0  # of the first byte of _ahead

    def write(self, offset: int, size: int, fd: int) -> None:
        """Write `size` bytes from `offset` on to `fd`. Offsets only grow."""
        self._skip(offset - self._position)
        while size:
            if not self._ahead:
                self._fill()
            count = os.write(fd, self._ahead[:size])
            self._skip(count)
            size -= count

    def finish(self) -> None:
        """Read the rest."""
        while self._plain.read(CHUNK):
            pass

    def _skip(self, count: int) -> None:
        while count > len(self._ahead):
            count -= len(self._ahead)
            self._position += len(self._ahead)
            self._fill()
        self._ahead = self._ahead[count:]
        self._position += count

    def _fill(self) -> None:
        piece = self._plain.read(CHUNK)
        if not piece:
            raise InvalidImage("the layer's blob ends too early")
        self._ahead = memoryview(piece)
