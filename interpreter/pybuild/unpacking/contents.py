"""Makes a layer in a folder: one pass over its blob, led by its index, never by what the tar says."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from pybuild.errors import InvalidImage
from pybuild.oci.compression import CHUNK, Decompressed
from pybuild.oci.readahead import ReadAhead
from pybuild.unpacking.layerplan import LayerPlan
from pybuild.unpacking.making import Making, make_copies
from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """Where a layer's files come from: the stored bytes of its blob, and folders of lower layers.

    ``lowers`` are those of the `below` layers, bottom first; the lowest may show several. They
    must be complete only if the layer has hard links to files of theirs. ``observe`` sees the
    pieces of the uncompressed tar, maybe in another thread; what it raises ends the pass.
    """

    blob: BinaryIO
    diff_id: str
    lowers: Sequence[Path] = ()
    below: int = 0
    observe: Callable[[bytes], object] | None = None


def make_layer(source: Source, plan: LayerPlan, making: Making, *, opaque: str) -> None:
    """Make all of `plan`; `opaque` is the attribute that marks a folder which hides lower ones.

    Raises InvalidImage if the blob isn't the one with this diff id, and as `Making` does.
    """
    making.folders(plan.folders)
    make_files(source, plan, making)
    make_copies(making, plan.lower_files, source.lowers, source.below)
    finish_layer(plan, making, opaque=opaque)


def finish_layer(plan: LayerPlan, making: Making, *, opaque: str) -> None:
    """Make what of `plan` is neither a folder nor a file, and settle the folders."""
    for entry in plan.others:
        if not making.other(entry) and entry.path in plan.covered:
            making.whiteout(entry.path)
    for path in plan.whiteouts:
        making.whiteout(path)
    making.settle(plan.folders, plan.opaque, opaque)


def make_files(source: Source, plan: LayerPlan, making: Making) -> None:
    """Make the files of a layer with the content that its blob has. Raises as `make_layer`."""
    whole = sha256()

    def observe(piece: bytes) -> None:
        whole.update(piece)
        if source.observe is not None:
            source.observe(piece)

    with Decompressed(source.blob) as plain, ReadAhead(plain, observe) as ahead:
        content = _Content(ahead)
        for offset, entries in plan.files:
            making.file(entries, partial(content.write, offset, entries[0].size))
        content.finish()
        if f"sha256:{whole.hexdigest()}" != source.diff_id:
            raise InvalidImage(f"the layer's blob doesn't hold {source.diff_id}")


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
