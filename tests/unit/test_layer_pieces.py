"""A layer that differs little from a stored one takes over its pieces, and nobody can tell."""

from __future__ import annotations

import gzip
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from hashlib import sha256
from random import Random
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybuild.files.trees import NewEntry
from pybuild.oci.layerblocks import BLOCK_SIZE, DamagedPiece, StoredPiece
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layerwriter import WrittenLayer, write_layer
from pybuild.values import replace

KIB = 1 << 10
Contents = Mapping[bytes, bytes]


class Project:
    """Files, of which is known what is in them, and how often each was opened."""

    def __init__(self, contents: Contents, known: Callable[[bytes], bool] = lambda _: True) -> None:
        self.contents = contents
        self.known = known
        self.opened: Counter[bytes] = Counter()

    def entries(self) -> list[NewEntry]:
        return [self._entry(path, content) for path, content in self.contents.items()]

    def _entry(self, path: bytes, content: bytes) -> NewEntry:
        digest = f"sha256:{sha256(content).hexdigest()}" if self.known(path) else None
        entry = Entry(path, Kind.FILE, size=len(content), mtime=1, digest=digest)
        return NewEntry(entry, partial(self._open, path))

    def _open(self, path: bytes) -> BinaryIO:
        self.opened[path] += 1
        return io.BytesIO(self.contents[path])


class Stored:
    """Layers that were written, with their pieces."""

    def __init__(self) -> None:
        self.pieces: dict[bytes, StoredPiece] = {}
        self.found = 0

    def find(self, key: bytes) -> StoredPiece | None:
        piece = self.pieces.get(key)
        self.found += piece is not None
        return piece

    def write(self, entries: Iterable[NewEntry]) -> tuple[WrittenLayer, bytes]:
        blob = io.BytesIO()
        written = write_layer(entries, blob.write, find=self.find)
        whole = blob.getvalue()
        offset = 0
        for piece in written.pieces:
            part = whole[offset : offset + piece.size]
            self.pieces[piece.key] = StoredPiece(piece.size, piece.plain, partial(io.BytesIO, part))
            offset += piece.size
        assert offset == len(whole)
        return written, whole


def written_anew(entries: Iterable[NewEntry]) -> tuple[WrittenLayer, bytes]:
    blob = io.BytesIO()
    written = write_layer(entries, blob.write)
    return written, blob.getvalue()


def many(count: int, size: int = 8 * KIB, seed: int = 1) -> dict[bytes, bytes]:
    chance = Random(seed)  # noqa: S311 - the same files each time
    return {
        b"src/%04d/%04d" % (n // 50, n): chance.randbytes(chance.randint(1, size))
        for n in range(count)
    }


def same_layer(one: tuple[WrittenLayer, bytes], other: tuple[WrittenLayer, bytes]) -> bool:
    return (one[0].diff, one[0].index, one[1]) == (other[0].diff, other[0].index, other[1])


@pytest.mark.parametrize("edit", ["changed", "grown", "removed", "added", "renamed"])
def test_one_edit_reads_the_files_beside_it_only(edit: str) -> None:
    files = many(2000)
    stored = Stored()
    stored.write(Project(files).entries())
    path = b"src/0020/1000"
    match edit:
        case "changed":
            files[path] = bytes(len(files[path]))
        case "grown":
            files[path] += bytes(5000)
        case "removed":
            del files[path]
        case "added":
            files[path + b".new"] = b"new"
        case _:
            files[path + b".new"] = files.pop(path)
    project = Project(files)
    written = stored.write(project.entries())
    assert same_layer(written, written_anew(Project(files).entries()))
    # a piece is a MiB, and ends with every 512th file at the latest
    assert sum(len(files[path]) for path in project.opened) < 6 * BLOCK_SIZE
    assert stored.found > 2


def test_what_is_the_same_is_not_read() -> None:
    files = many(1000)
    stored = Stored()
    first = stored.write(Project(files).entries())
    again = Project(files)
    assert same_layer(stored.write(again.entries()), first)
    # but for what is made sooner than it is found
    small = sum(piece.plain for piece in first[0].pieces if piece.plain < BLOCK_SIZE // 8)
    assert sum(len(files[path]) for path in again.opened) <= small < BLOCK_SIZE


def test_files_of_unknown_content_are_read() -> None:
    files = many(1000)
    stored = Stored()
    first = stored.write(Project(files, lambda _: False).entries())
    again = Project(files, lambda path: path != b"src/0010/0500")
    assert same_layer(stored.write(again.entries()), first)
    assert again.opened[b"src/0010/0500"] == 1
    assert len(again.opened) < 600


@pytest.mark.parametrize("size", [BLOCK_SIZE - 512, BLOCK_SIZE, 9 * BLOCK_SIZE + 1])
def test_a_large_file_is_a_piece(size: int) -> None:
    files = {b"a": b"small", b"large": os.urandom(size // 2) + bytes(size - size // 2), b"z": b"z"}
    stored = Stored()
    stored.write(Project(files).entries())
    files[b"a"] = b"changed"
    project = Project(files)
    written = stored.write(project.entries())
    assert same_layer(written, written_anew(Project(files).entries()))
    assert b"large" not in project.opened


def test_a_layer_is_read_as_one_stream() -> None:
    files = many(1000)
    written, blob = Stored().write(Project(files).entries())
    assert len(written.pieces) > 2
    tar = gzip.decompress(blob)
    assert f"sha256:{sha256(tar).hexdigest()}" == written.diff.diff_id
    assert sum(piece.plain for piece in written.pieces) == len(tar)


@pytest.mark.parametrize(
    "change",
    [
        {"mode": 0o600},
        {"uid": 7},
        {"gid": 7},
        {"mtime": 2},
        {"xattrs": (("user.a", b"b"),)},
    ],
)
def test_a_file_that_differs_in_anything_makes_another_piece(change: dict[str, object]) -> None:
    entries = Project(many(200)).entries()
    stored = Stored()
    stored.write(entries)
    stored.found = 0
    entries[100] = replace(entries[100], entry=replace(entries[100].entry, **change))
    first = Stored()
    assert stored.write(entries)[0].diff == first.write(entries)[0].diff
    before, after = set(stored.pieces), set(first.pieces)
    assert after <= before
    assert len(before) > len(after)


def test_links_to_a_file_of_a_piece_that_is_taken_over_are_listed_as_it_is() -> None:
    files = many(600)
    links = [
        NewEntry(Entry(b"z/%03d" % n, Kind.FILE, link=path))
        for n, path in enumerate(files)
        if n % 9
    ]
    links.append(NewEntry(Entry(b"a", Kind.FILE, link=b"src/0003/0171")))
    stored = Stored()
    first = stored.write([*Project(files).entries(), *links])
    again = stored.write([*Project(files).entries(), *links])
    assert same_layer(first, again)
    assert again[0].index.get(b"z/001") == first[0].index.get(b"z/001")
    assert stored.found > 2


def damaged(piece: StoredPiece, how: str) -> StoredPiece:
    content = piece.open().read()
    match how:
        case "a bit":
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        case "cut":
            content = content[:-1]
        case "gone":
            content = b""
        case "zeros":
            content = bytes(piece.plain)
            return StoredPiece(piece.plain, piece.plain, partial(io.BytesIO, content))
        case "another":
            content = gzip.compress(bytes(piece.plain - 1))
            return StoredPiece(len(content), piece.plain, partial(io.BytesIO, content))
        case _:
            raise AssertionError(how)
    return replace(piece, open=partial(io.BytesIO, content))


@pytest.mark.parametrize("how", ["a bit", "cut", "gone", "zeros", "another"])
@pytest.mark.parametrize("large", [False, True])
def test_a_damaged_piece_is_told(how: str, *, large: bool) -> None:
    files = {b"f": os.urandom(9 * BLOCK_SIZE)} if large else many(1000)
    stored = Stored()
    stored.write(Project(files).entries())
    key = max(stored.pieces, key=lambda key: stored.pieces[key].plain)
    stored.pieces[key] = damaged(stored.pieces[key], how)
    with pytest.raises(DamagedPiece):
        stored.write(Project(files).entries())


def test_a_piece_of_another_size_is_not_taken() -> None:
    files = many(1000)
    stored = Stored()
    first = stored.write(Project(files).entries())
    stored.pieces = {
        key: replace(piece, plain=piece.plain + 512) for key, piece in stored.pieces.items()
    }
    assert same_layer(stored.write(Project(files).entries()), first)


names = st.integers(0, 400).map(lambda n: b"d%d/f%d" % (n % 7, n))
sizes = st.sampled_from([0, 1, 511, 512, 513, 5000, 70_000, BLOCK_SIZE - 512, BLOCK_SIZE + 1])


@given(st.data())
def test_any_edits_come_to_the_same_bytes(data: st.DataObject) -> None:
    chance = Random(data.draw(st.integers(0, 1 << 32)))  # noqa: S311 - as above
    stored = Stored()
    files: dict[bytes, bytes] = many(data.draw(st.sampled_from([0, 5, 300])))
    for _ in range(3):
        for name in data.draw(st.lists(names, max_size=8)):
            files[name] = chance.randbytes(1) * data.draw(sizes)
        for name in data.draw(st.lists(st.sampled_from(sorted(files) or [b""]), max_size=4)):
            files.pop(name, None)
        unknown = set(data.draw(st.lists(st.sampled_from(sorted(files) or [b""]), max_size=3)))
        project = Project(files, lambda path, unknown=unknown: path not in unknown)  # type: ignore[misc]
        written = stored.write(project.entries())
        assert same_layer(written, written_anew(Project(files).entries()))
