"""Where the indexes of layers are kept."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import pytest

from pybuild.errors import BackendFailed
from pybuild.files.layerfiles import LayerFiles
from pybuild.files.trees import NewEntry
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.layerindex import Entry, Kind, LayerIndex
from pybuild.oci.layertar import WrittenLayer, write_layer


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
