"""The index of a layer is made while its blob is written."""

from __future__ import annotations

import io
import os
import threading
from functools import partial

import pytest

from pybuild.files.trees import NewEntry
from pybuild.oci.arriving import ArrivingLayer
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layertar import WrittenLayer, write_layer

PIECE = 100_000


def layer(size: int) -> tuple[WrittenLayer, bytes]:
    blob = io.BytesIO()
    contents = {b"a": os.urandom(size), b"b": b"text" * 1000}
    entries = [
        NewEntry(Entry(path, Kind.FILE, size=len(content)), partial(io.BytesIO, content))
        for path, content in contents.items()
    ]
    return write_layer(entries, blob.write), blob.getvalue()


def arrive(arriving: ArrivingLayer, blob: bytes) -> None:
    """Write the blob piece by piece."""
    for at in range(0, len(blob), PIECE):
        arriving.write(blob[at : at + PIECE])


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_layer_is_indexed_as_it_comes(size: int) -> None:
    written, blob = layer(size)
    arriving = ArrivingLayer(len(blob))
    arrive(arriving, blob)
    assert arriving.finish() == (written.diff.diff_id, written.index)
    arriving.close()


def test_a_blob_that_begins_anew_is_read_anew() -> None:
    written, blob = layer(1_000_000)
    arriving = ArrivingLayer(len(blob))
    arrive(arriving, b"\x1f\x8b\x08" + os.urandom(500_000))
    arriving.restart()
    arrive(arriving, blob[:700_000])
    arriving.restart()
    arrive(arriving, blob)
    assert arriving.finish() == (written.diff.diff_id, written.index)
    arriving.close()


@pytest.mark.parametrize("content", [b"", b"{}", os.urandom(1_000_000)])
def test_what_is_no_layer_has_no_index(content: bytes) -> None:
    arriving = ArrivingLayer(len(content))
    arrive(arriving, content)
    assert arriving.finish() is None
    arriving.close()


def test_what_is_given_up_leaves_no_thread() -> None:
    _, blob = layer(3_000_000)
    before = threading.active_count()
    arriving = ArrivingLayer(len(blob))
    arrive(arriving, blob[:2_000_000])
    arriving.close()
    assert threading.active_count() == before


def test_what_is_no_layer_may_be_of_any_size() -> None:
    arriving = ArrivingLayer(50_000_000)
    arrive(arriving, os.urandom(50_000_000))  # more than is kept for the reader
    assert arriving.finish() is None
    arriving.close()
