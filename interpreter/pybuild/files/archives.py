"""Tar archives of a context or an ADD, read without being unpacked."""

from __future__ import annotations

from typing import BinaryIO

from pybuild.errors import InvalidImage
from pybuild.files.layertree import LayerTree
from pybuild.files.spool import Spool
from pybuild.oci.compression import Decompressed
from pybuild.oci.layerindex import Entry, LayerIndex
from pybuild.oci.layertar import index_tar
from pybuild.oci.tarformat import BLOCK, Limits, TarReader, is_header


class ArchiveTree(LayerTree):
    """What is in a tar; its content lies uncompressed in a spool. Owners are the tar's."""

    def __init__(self, index: LayerIndex, spool: Spool) -> None:
        self._spool = spool
        super().__init__([index], self._content_at)

    @property
    def index(self) -> LayerIndex:
        return self.indexes[0]

    def _content_at(self, _layer: int, entry: Entry, offset: int) -> BinaryIO:
        return self._spool.open(offset, entry.size)


def open_archive(stream: BinaryIO, spool: Spool, limits: Limits | None = None) -> ArchiveTree:
    """Read `stream` to its end: a tar, plain or by gzip, bzip2, xz or zstd.

    The tree can be opened until `spool`, which must be empty, is closed. Raises
    InvalidImage for what is no tar, is broken, beyond the limits, or leads out of itself.
    """
    with Decompressed(stream, archive=True) as plain:
        index = index_tar(TarReader(plain, limits, spool.write), whiteouts=False)
    return ArchiveTree(index, spool)


def is_archive_content(stream: BinaryIO) -> bool:
    """Whether `stream` begins with a tar header, compressed or not. Reads from its start."""
    try:
        with Decompressed(stream, archive=True) as plain:
            head = b""
            while len(head) < BLOCK and (more := plain.read(BLOCK - len(head))):
                head += more
    except InvalidImage:
        return False
    return is_header(head)
