"""The index of a layer is made while its blob is written."""

from __future__ import annotations

import io
import os
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from pybuild.files.trees import NewEntry
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layertar import WrittenLayer, write_layer

if sys.platform != "linux":
    pytest.skip("inherent: the embedded backend runs on Linux only", allow_module_level=True)

from pybuild_embedded.arriving import ArrivingLayer

PIECE = 100_000


def layer(size: int) -> tuple[WrittenLayer, bytes]:
    blob = io.BytesIO()
    contents = {b"a": os.urandom(size), b"b": b"text" * 1000}
    entries = [
        NewEntry(Entry(path, Kind.FILE, size=len(content)), partial(io.BytesIO, content))
        for path, content in contents.items()
    ]
    return write_layer(entries, blob.write), blob.getvalue()


def arrive(arriving: ArrivingLayer, path: Path, blob: bytes) -> None:
    """Write the blob piece by piece."""
    with path.open("wb", buffering=0) as file:
        for at in range(0, len(blob), PIECE):
            file.write(blob[at : at + PIECE])
            arriving.grow(min(at + PIECE, len(blob)))


def open_things() -> tuple[int, int]:
    return threading.active_count(), len([*Path("/proc/self/fd").iterdir()])


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_layer_is_indexed_as_it_comes(tmp_path: Path, size: int) -> None:
    written, blob = layer(size)
    path = tmp_path / "blob"
    arriving = ArrivingLayer(path, len(blob))
    arrive(arriving, path, blob)
    assert arriving.finish() == (written.diff.diff_id, written.index)
    arriving.close()


def test_a_blob_that_begins_anew_is_read_anew(tmp_path: Path) -> None:
    written, blob = layer(1_000_000)
    path = tmp_path / "blob"
    arriving = ArrivingLayer(path, len(blob))
    arrive(arriving, path, b"\x1f\x8b\x08" + os.urandom(500_000))
    arriving.restart()
    arrive(arriving, path, blob[:700_000])
    arriving.restart()
    arrive(arriving, path, blob)
    assert arriving.finish() == (written.diff.diff_id, written.index)
    arriving.close()


@pytest.mark.parametrize("content", [b"", b"{}", os.urandom(1_000_000)])
def test_what_is_no_layer_has_no_index(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "blob"
    arriving = ArrivingLayer(path, len(content))
    arrive(arriving, path, content)
    assert arriving.finish() is None
    arriving.close()


def test_what_is_given_up_leaves_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    _, blob = layer(3_000_000)
    before = open_things()
    path = tmp_path / "blob"
    arriving = ArrivingLayer(path, len(blob))
    arrive(arriving, path, blob[:2_000_000])
    arriving.close()
    assert open_things() == before
