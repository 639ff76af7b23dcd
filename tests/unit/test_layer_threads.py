"""Large layers are written and read in several threads, which nobody notices."""

from __future__ import annotations

import io
import os
from functools import partial
from hashlib import sha256

import pytest

from leftthreads import no_thread_left
from pybuild.errors import CopyFailed
from pybuild.files.trees import NewEntry
from pybuild.oci.compression import Compression, Packing, compressor
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layertar import read_index
from pybuild.oci.layerwriter import write_layer
from pybuild.oci.readahead import ReadAhead

MIB = 1 << 20


def file(path: bytes, content: bytes, size: int | None = None) -> NewEntry:
    entry = Entry(path, Kind.FILE, size=len(content) if size is None else size)
    return NewEntry(entry, partial(Unbuffered, content))


class Unbuffered(io.RawIOBase):
    """A stream that isn't all in memory."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._stream = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        return self._stream.readinto(buffer)


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("size", [MIB // 2, MIB, 7 * MIB + 12345])
def test_the_bytes_are_those_of_a_stream_for_each_block(
    compression: Compression, size: int
) -> None:
    content = os.urandom(size // 2) + bytes(size - size // 2)
    plain, packed = io.BytesIO(), io.BytesIO()
    with no_thread_left():
        write_layer([file(b"f", content)], plain.write, Compression.NONE)
        written = write_layer([file(b"f", content)], packed.write, compression)
    tar = plain.getvalue()
    blocks = b""
    for at in range(0, len(tar), MIB):
        stream = compressor(Packing(compression))
        blocks += stream.compress(tar[at : at + MIB]) + stream.flush()
    assert packed.getvalue() == blocks
    assert written.diff.diff_id == f"sha256:{sha256(tar).hexdigest()}"
    assert written.diff.blob.digest == f"sha256:{sha256(packed.getvalue()).hexdigest()}"
    assert read_index(io.BytesIO(packed.getvalue())) == (written.diff.diff_id, written.index)


class FullError(Exception):
    """The sink has had enough."""


@pytest.mark.parametrize("allowed", [0, 2, 9])
def test_an_error_of_the_sink_ends_it(allowed: int) -> None:
    calls = 0

    def sink(piece: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > allowed:
            raise FullError

    with no_thread_left(), pytest.raises(FullError):
        write_layer([file(b"f", os.urandom(12 * MIB))], sink, Compression.NONE)
    assert calls == allowed + 1


def test_a_file_that_can_not_be_read_ends_it() -> None:
    with no_thread_left(), pytest.raises(CopyFailed, match="changed while it was read"):
        write_layer([file(b"f", os.urandom(5 * MIB), 6 * MIB)], lambda _: None)


def test_reading_ahead_gives_all_pieces_in_order_and_observes_them() -> None:
    content = os.urandom(5 * MIB + 7)
    seen = bytearray()
    with no_thread_left(), ReadAhead(io.BytesIO(content), seen.extend) as ahead:
        found = bytearray()
        while piece := ahead.read(100_000):
            found += piece
        assert ahead.read(1) == b""
    assert found == seen == content


def test_an_error_while_reading_ahead_comes_where_it_belongs() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() >= 3 * MIB:
                raise FullError
            return super().read(size)

    with no_thread_left(), ReadAhead(Broken(bytes(9 * MIB)), lambda _: None) as ahead:
        found = bytearray()
        while len(found) < 3 * MIB:
            found += ahead.read(MIB)
        with pytest.raises(FullError):
            ahead.read(MIB)


def test_what_was_read_ahead_in_vain_is_dropped() -> None:
    with no_thread_left(), ReadAhead(io.BytesIO(bytes(9 * MIB)), lambda _: None) as ahead:
        for _ in range(10):
            ahead.read(MIB)
