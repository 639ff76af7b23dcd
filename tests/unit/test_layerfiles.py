"""Where the indexes of layers are kept."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest

from pybuild.errors import BackendFailed, InvalidImage
from pybuild.files.layerfiles import LayerFiles
from pybuild.files.trees import NewEntry
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.layerindex import Entry, Kind, LayerIndex
from pybuild.oci.layerwriter import WrittenLayer, write_layer


class Blobs:
    """One layer, and how often its blob was opened."""

    def __init__(self) -> None:
        blob = io.BytesIO()
        entry = NewEntry(Entry(b"f", Kind.FILE, size=1), lambda: io.BytesIO(b"x"))
        self.written: WrittenLayer = write_layer([entry], blob.write)
        self._content = blob.getvalue()
        self.opened = 0

    @property
    def layer(self) -> LayerDiff:
        return self.written.diff

    def open(self, digest: str) -> BinaryIO:
        assert digest == self.layer.blob.digest
        self.opened += 1
        return io.BytesIO(self._content)


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


@pytest.mark.parametrize("cached", [True, False])
def test_the_index_file_is_written_when_it_is_asked_for(
    blobs: Blobs, tmp_path: Path, cached: bool
) -> None:
    files = LayerFiles(blobs.open, tmp_path / "cache" if cached else None, tmp_path)
    path = files.index_path(blobs.layer)
    assert LayerIndex.from_bytes(path.read_bytes()) == blobs.written.index
    assert path == files.index_path(blobs.layer)
    assert blobs.opened == 1


def test_a_remembered_index_is_written_without_its_blob(blobs: Blobs, tmp_path: Path) -> None:
    files = LayerFiles(blobs.open, tmp_path / "cache", tmp_path)
    assert not files.knows(blobs.layer)
    files.remember(blobs.layer.diff_id, blobs.written.index)
    assert files.knows(blobs.layer)
    path = files.index_path(blobs.layer)
    assert LayerIndex.from_bytes(path.read_bytes()) == blobs.written.index
    assert blobs.opened == 0
    # so another build needs no blob either
    other = LayerFiles(blobs.open, tmp_path / "cache", tmp_path)
    assert other.knows(blobs.layer)
    assert other.index_path(blobs.layer) == path
    assert blobs.opened == 0


def test_a_damaged_index_file_is_written_anew(blobs: Blobs, tmp_path: Path) -> None:
    path = LayerFiles(blobs.open, tmp_path, tmp_path).index_path(blobs.layer)
    path.write_bytes(path.read_bytes()[:-1])
    files = LayerFiles(blobs.open, tmp_path, tmp_path)
    assert not files.knows(blobs.layer)
    assert files.index_path(blobs.layer) == path
    assert LayerIndex.from_bytes(path.read_bytes()) == blobs.written.index


@pytest.mark.parametrize("cached", [True, False])
def test_an_adopted_file_is_the_layers_index(blobs: Blobs, tmp_path: Path, cached: bool) -> None:
    files = LayerFiles(blobs.open, tmp_path / "cache" if cached else None, tmp_path)
    made = tmp_path / "made"
    made.write_bytes(blobs.written.index.to_bytes())
    files.adopt(blobs.layer.diff_id, made)
    assert not made.exists()
    assert files.knows(blobs.layer)
    assert files.index(blobs.layer) == blobs.written.index
    assert LayerIndex.from_bytes(files.index_path(blobs.layer).read_bytes()) == blobs.written.index
    assert files.open(blobs.layer, blobs.written.index.entries[0]).read() == b"x"
    assert blobs.opened == 1


def test_an_index_that_can_not_be_kept_is_an_error_only_where_the_file_is_needed(
    blobs: Blobs, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "cache"
    in_the_way.write_bytes(b"")
    files = LayerFiles(blobs.open, in_the_way, tmp_path)
    assert files.index(blobs.layer) == blobs.written.index
    with pytest.raises(BackendFailed, match="can't keep the index of a layer"):
        files.index_path(blobs.layer)


class Layer(Blobs):
    """A layer of many files, of which the blob's bytes are counted as they are read."""

    def __init__(self, sizes: Sequence[int]) -> None:
        blob = io.BytesIO()
        self.contents = {b"f%04d" % at: os.urandom(size) for at, size in enumerate(sizes)}
        entries = [
            NewEntry(Entry(path, Kind.FILE, size=len(content)), partial(io.BytesIO, content))
            for path, content in self.contents.items()
        ]
        self.written = write_layer(entries, blob.write)
        self._content = blob.getvalue()
        self.opened = 0
        self.read = 0

    def open(self, digest: str) -> BinaryIO:
        self.opened += 1
        stream = io.BytesIO(self._content)
        whole = stream.read

        def counted(size: int = -1, /) -> bytes:
            piece = whole(size)
            self.read += len(piece)
            return piece

        stream.read = counted  # type: ignore[method-assign]
        return stream

    def damage(self, at: int) -> None:
        broken = bytearray(self._content)
        broken[at] ^= 0xFF
        self._content = bytes(broken)


def copies(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def test_a_small_file_near_the_beginning_is_read_without_the_rest(tmp_path: Path) -> None:
    layer = Layer([1000, 1000, 8_000_000])
    files = LayerFiles(layer.open, tmp_path / "cache", tmp_path)
    files.remember(layer.layer.diff_id, layer.written.index)
    tree = files.tree([layer.layer])
    for _ in range(3):
        for path in (b"f0000", b"f0001"):
            assert tree.open(path).read() == layer.contents[path]
    assert layer.opened == 2
    assert layer.read < 2_000_000
    assert not copies(tmp_path)


@pytest.mark.parametrize("sizes", [[10] * 12, [100_000], [40_000_000, 10]])
def test_large_far_and_many_files_are_read_from_a_copy(tmp_path: Path, sizes: list[int]) -> None:
    layer = Layer(sizes)
    files = LayerFiles(layer.open, tmp_path / "cache", tmp_path)
    files.remember(layer.layer.diff_id, layer.written.index)
    for entry in reversed(layer.written.index.entries):
        assert files.open(layer.layer, entry).read() == layer.contents[entry.path]
    assert len(copies(tmp_path)) == 1
    assert layer.opened <= 9


@pytest.mark.parametrize("is_mended", [True, False])
def test_a_small_file_of_a_damaged_layer_is_no_content(tmp_path: Path, is_mended: bool) -> None:
    layer = Layer([1000])
    intact = layer._content
    layer.damage(600)

    def mend(_: LayerDiff) -> bool:
        layer._content = intact if is_mended else layer._content
        return is_mended

    files = LayerFiles(layer.open, tmp_path / "cache", tmp_path, mend)
    files.remember(layer.layer.diff_id, layer.written.index)
    [entry] = layer.written.index.entries
    if is_mended:
        assert files.open(layer.layer, entry).read() == layer.contents[b"f0000"]
        return
    with pytest.raises(InvalidImage):
        files.open(layer.layer, entry)
