"""The index of a layer is made while its blob is written."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Self

import pytest

from leftthreads import no_thread_left
from pybuild.files.trees import NewEntry
from pybuild.oci.arriving import ArrivingLayer
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layerwriter import WrittenLayer, write_layer
from pybuild.oci.tarformat import Member

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
    with no_thread_left():
        arriving = ArrivingLayer(len(blob))
        arrive(arriving, blob[:2_000_000])
        arriving.close()


def test_what_is_no_layer_may_be_of_any_size() -> None:
    arriving = ArrivingLayer(50_000_000)
    arrive(arriving, os.urandom(50_000_000))  # more than is kept for the reader
    assert arriving.finish() is None
    arriving.close()


class Taken:
    """Takes the tar and the files of a layer."""

    def __init__(self, most: int = 100) -> None:
        self.tar = bytearray()
        self.files: dict[bytes, bytes] = {}
        self.kept: list[str] = []
        self.most = most

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def write(self, piece: bytes, /) -> None:
        self.tar += piece

    def on_file(self, member: Member, /) -> Callable[[memoryview], object] | None:
        if len(self.files) == self.most:
            return None
        self.files[member.name] = b""

        def take(piece: memoryview) -> None:
            self.files[member.name] += bytes(piece)

        return take

    def restart(self) -> None:
        self.tar.clear()
        self.files.clear()

    def keep(self, diff_id: str, /) -> None:
        self.kept.append(diff_id)


@pytest.mark.parametrize("most", [0, 1, 2])
def test_files_are_given_to_who_wants_them(most: int) -> None:
    written, blob = layer(3_000_000)
    taken = Taken(most)
    arriving = ArrivingLayer(len(blob), taken)
    arrive(arriving, blob[: len(blob) // 2])
    arriving.restart()
    arrive(arriving, blob)
    assert arriving.finish() == (written.diff.diff_id, written.index)
    arriving.close()
    assert taken.kept == [written.diff.diff_id]
    assert f"sha256:{sha256(taken.tar).hexdigest()}" == written.diff.diff_id
    digests = {path: f"sha256:{sha256(all_).hexdigest()}" for path, all_ in taken.files.items()}
    wanted = [entry for entry in written.index.entries if entry.size][:most]
    assert digests == {entry.path: entry.digest for entry in wanted}


def test_an_error_of_who_takes_a_file_is_told_at_the_end() -> None:
    class FullError(Exception):
        pass

    class Full(Taken):
        def on_file(self, member: Member, /) -> Callable[[memoryview], object] | None:
            raise FullError

    _, blob = layer(3_000_000)
    taken = Full()
    arriving = ArrivingLayer(len(blob), taken)
    arrive(arriving, blob)
    with pytest.raises(FullError):
        arriving.finish()
    arriving.close()
    assert taken.kept == []
