"""Makes a layer's files: one pass over its blob, led by its index, never by what the tar says."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import BinaryIO

from pybuild.errors import InvalidImage
from pybuild.oci.compression import CHUNK, Decompressed
from pybuild.oci.readahead import ReadAhead
from pybuild.unpacking.layerplan import LayerPlan
from pybuild.unpacking.making import Making


def make_files(
    blob: BinaryIO,
    diff_id: str,
    plan: LayerPlan,
    making: Making,
    observe: Callable[[bytes], object] = lambda _: None,
) -> None:
    """Make the files of a layer with the content that its blob has, as it is stored.

    Their folders are there. `observe` sees the pieces of the uncompressed tar, maybe in
    another thread; what it raises ends the pass. Raises InvalidImage if this isn't the blob
    with that diff id.
    """
    whole = sha256()

    def see(piece: bytes) -> None:
        whole.update(piece)
        observe(piece)

    with Decompressed(blob) as plain, ReadAhead(plain, see) as ahead:
        content = _Content(ahead)
        for offset, entries in plan.files:
            making.file(entries, partial(content.write, offset, entries[0].size))
        content.finish()
        if f"sha256:{whole.hexdigest()}" != diff_id:
            raise InvalidImage(f"the layer's blob doesn't hold {diff_id}")


def finish_layer(plan: LayerPlan, making: Making, *, opaque: str) -> None:
    """Make what of `plan` is neither a folder nor a file, and settle the folders.

    `opaque` is the attribute that marks a folder which hides lower ones.
    """
    for entry in plan.others:
        if not making.other(entry) and entry.path in plan.covered:
            making.whiteout(entry.path)
    for path in plan.whiteouts:
        making.whiteout(path)
    making.settle(plan.folders, plan.opaque, opaque)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write `data`, however often the system takes a part of it only. Raises OSError."""
    left = memoryview(data)
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
