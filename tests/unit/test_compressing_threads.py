"""How many threads compress a layer is seen in nothing but time."""

from __future__ import annotations

import io
import threading
import zlib
from collections.abc import Callable
from functools import partial
from random import Random

import pytest

from leftthreads import no_thread_left
from pybuild.errors import BackendFailed
from pybuild.files.trees import NewEntry
from pybuild.oci import layerblocks
from pybuild.oci.compression import Compression, Compressor, Packing, compressor
from pybuild.oci.layerblocks import BLOCK_SIZE
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layertar import read_index
from pybuild.oci.layerwriter import WrittenLayer, write_layer

HEADER = 512


@pytest.fixture(params=[1, 2, 3, 4, 16])
def processors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    count: int = request.param
    monkeypatch.setattr(layerblocks.os, "cpu_count", lambda: count)
    return count


def entries(*sizes: int) -> list[NewEntry]:
    chance = Random(1)  # noqa: S311 - the same bytes each time
    found = []
    for number, size in enumerate(sizes):
        # some of it can be compressed
        content = b"".join(
            chance.randbytes(4000) + bytes(chance.randint(0, 8000)) for _ in range(size // 4000 + 1)
        )[:size]
        entry = Entry(b"f%04d" % number, Kind.FILE, mode=0o644, size=size, mtime=1)
        found.append(NewEntry(entry, partial(io.BytesIO, content)))
    return found


def written(
    files: list[NewEntry], compression: Compression = Compression.GZIP
) -> tuple[WrittenLayer, bytes]:
    blob = io.BytesIO()
    layer = write_layer(files, blob.write, compression)
    return layer, blob.getvalue()


def alone(
    files: list[NewEntry], compression: Compression, monkeypatch: pytest.MonkeyPatch
) -> tuple[WrittenLayer, bytes]:
    """What the thread that hands the blob on makes of them if it compresses by itself."""
    with monkeypatch.context() as patched:
        patched.setattr(layerblocks.os, "cpu_count", lambda: 1)
        return written(files, compression)


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize(
    "sizes",
    [
        (1,),
        (BLOCK_SIZE - HEADER,),  # a piece that ends with its block
        (2 * BLOCK_SIZE - HEADER, 5, 2 * BLOCK_SIZE),
        (7 * BLOCK_SIZE + 1, 100, 9 * BLOCK_SIZE - 1),
        tuple(range(0, 300_000, 1000)),
    ],
    ids=["one byte", "a block", "a block and more", "large files", "many files"],
)
def test_the_bytes_are_the_same(
    processors: int,
    compression: Compression,
    sizes: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = entries(*sizes)
    layer, blob = written(files, compression)
    expected, expected_blob = alone(files, compression, monkeypatch)
    assert (layer.diff, layer.index, blob) == (expected.diff, expected.index, expected_blob)
    assert read_index(io.BytesIO(blob)) == (layer.diff.diff_id, layer.index)


def test_a_large_file_is_compressed_in_blocks_that_any_reader_takes_as_one(
    processors: int,
) -> None:
    _, blob = written(entries(5 * BLOCK_SIZE))
    tar, members = b"", 0
    while blob:
        member = zlib.decompressobj(31)
        tar += member.decompress(blob)
        blob = member.unused_data
        members += 1
    assert members == 6
    assert len(tar) == HEADER + 5 * BLOCK_SIZE + 1024


class Meeting:
    """A compressor that goes on when as many others are at work."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self._barrier = barrier
        self._begun = False

    def compress(self, data: bytes | bytearray | memoryview, /) -> bytes:
        if self._begun:
            self._barrier.wait(30)
        self._begun = True
        return bytes(data)

    def flush(self) -> bytes:
        return b""


@pytest.mark.parametrize(("count", "at_once"), [(3, 1), (4, 2), (6, 4), (64, 4)])
def test_blocks_are_compressed_at_the_same_time(
    count: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layerblocks.os, "cpu_count", lambda: count)
    barrier = threading.Barrier(at_once)
    monkeypatch.setattr(layerblocks, "compressor", lambda _: Meeting(barrier))
    layer, blob = written(entries(12 * at_once * BLOCK_SIZE - HEADER - 1024))
    assert layer.diff.blob.size == len(blob) == 12 * at_once * BLOCK_SIZE


class Failing:
    """A compressor that can't go on from some block on."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self._stream: Compressor = compressor(Packing())

    def compress(self, data: bytes | bytearray | memoryview, /) -> bytes:
        if len(data) > layerblocks.HEAD and self._count() == 5:
            raise MemoryError
        return self._stream.compress(data)

    def flush(self) -> bytes:
        return self._stream.flush()


@pytest.mark.usefixtures("processors")
def test_an_error_of_a_thread_ends_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(100))
    monkeypatch.setattr(layerblocks, "compressor", lambda _: Failing(lambda: next(numbers)))
    with no_thread_left(), pytest.raises(MemoryError):
        written(entries(20 * BLOCK_SIZE))


@pytest.mark.usefixtures("processors")
def test_nothing_follows_what_the_sink_did_not_take() -> None:
    taken: list[bytes] = []

    def sink(data: bytes) -> None:
        if len(taken) == 3:
            raise BackendFailed("no space left")
        taken.append(data)

    with no_thread_left(), pytest.raises(BackendFailed, match="no space"):
        write_layer(entries(20 * BLOCK_SIZE), sink)
    assert len(taken) == 3
