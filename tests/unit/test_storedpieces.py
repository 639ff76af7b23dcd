"""Tables of pieces outlive the process, and say nothing of layers that are gone."""

from __future__ import annotations

import io
import os
import threading
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import pytest

from pybuild.errors import ImageNotFound
from pybuild.files.storedpieces import StoredPieces
from pybuild.oci.layerblocks import DamagedPiece
from pybuild.oci.layerwriter import Piece

MIB = 1 << 20


class Blobs:
    """Stored layers, by their digests."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.asked = 0

    def add(self, content: bytes) -> str:
        digest = f"sha256:{sha256(content).hexdigest()}"
        self.contents[digest] = content
        return digest

    def keep(self, digest: str) -> bool:
        self.asked += 1
        return digest in self.contents

    def open_part(self, digest: str, offset: int, size: int) -> BinaryIO:
        if digest not in self.contents:
            raise ImageNotFound(f"there is no {digest}")
        return io.BytesIO(self.contents[digest][offset : offset + size])


def key(number: int) -> bytes:
    return sha256(b"%d" % number).digest()


def pieces(first: int, count: int = 3) -> list[Piece]:
    return [Piece(key(first + n), MIB, 10 + n) for n in range(count)]


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "notes" / "pieces"


def opened(folder: Path, blobs: Blobs) -> StoredPieces:
    return StoredPieces(folder, blobs.keep, blobs.open_part)


@pytest.mark.parametrize("later", [False, True])
def test_a_piece_is_found_by_its_key(folder: Path, blobs: Blobs, *, later: bool) -> None:
    first = opened(folder, blobs)
    assert first.find(key(1)) is None
    digest = blobs.add(bytes(range(33)))
    first.record(digest, pieces(0))
    found = (opened(folder, blobs) if later else first).find(key(1))
    assert found is not None
    assert (found.size, found.plain) == (11, MIB)
    assert found.open().read() == bytes(range(10, 21))
    assert first.find(key(9)) is None


def test_the_newest_layer_counts(folder: Path, blobs: Blobs) -> None:
    for number in (2, 1):
        opened(folder, blobs).record(blobs.add(bytes([number]) * 33), pieces(0))
        [path] = folder.glob(f"*{sha256(bytes([number]) * 33).hexdigest()}")
        os.utime(path, (number, number))
    found = opened(folder, blobs).find(key(0))
    assert found is not None
    assert found.open().read(1) == b"\2"


def test_what_is_gone_is_not_found_and_forgotten(folder: Path, blobs: Blobs) -> None:
    digest = blobs.add(bytes(33))
    opened(folder, blobs).record(digest, pieces(0))
    blobs.contents.clear()
    assert opened(folder, blobs).find(key(0)) is None
    assert not list(folder.iterdir())


def test_an_older_layer_serves_where_the_newest_is_gone(folder: Path, blobs: Blobs) -> None:
    stored = opened(folder, blobs)
    stored.record(blobs.add(b"a" * 33), pieces(0))
    newest = blobs.add(b"b" * 33)
    stored.record(newest, pieces(0))
    del blobs.contents[newest]
    found = stored.find(key(0))
    assert found is not None
    assert found.open().read(1) == b"a"


def test_many_layers_take_no_more_room_than_some(folder: Path, blobs: Blobs) -> None:
    stored = opened(folder, blobs)
    for number in range(70):
        stored.record(blobs.add(bytes([number]) * 33), pieces(number * 10))
    assert stored.find(key(50)) is None
    assert stored.find(key(60)) is not None


def test_what_goes_after_it_was_found_is_damaged(folder: Path, blobs: Blobs) -> None:
    stored = opened(folder, blobs)
    stored.record(blobs.add(bytes(33)), pieces(0))
    found = stored.find(key(0))
    assert found is not None
    blobs.contents.clear()
    with pytest.raises(DamagedPiece, match="can't be read: there is no sha256"):
        found.open()


def test_each_layer_is_asked_for_once(folder: Path, blobs: Blobs) -> None:
    stored = opened(folder, blobs)
    stored.record(blobs.add(bytes(33)), pieces(0))
    assert all(stored.find(key(n % 3)) for n in range(30))
    assert blobs.asked == 1


def test_a_layer_that_came_back_is_asked_for_again(folder: Path, blobs: Blobs) -> None:
    content = bytes(33)
    digest = blobs.add(content)
    stored = opened(folder, blobs)
    stored.record(digest, pieces(0))
    blobs.contents.clear()
    assert stored.find(key(0)) is None
    stored.record(blobs.add(content), pieces(0))
    assert stored.find(key(0)) is not None


def test_small_layers_are_not_worth_it(folder: Path, blobs: Blobs) -> None:
    stored = opened(folder, blobs)
    stored.record(blobs.add(bytes(33)), [Piece(key(0), MIB - 1, 33)])
    assert stored.find(key(0)) is None
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["cut", "a bit", "empty", "other"])
def test_a_damaged_table_says_nothing(folder: Path, blobs: Blobs, damage: str) -> None:
    opened(folder, blobs).record(blobs.add(bytes(33)), pieces(0))
    [path] = folder.iterdir()
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-1],
            "a bit": content[:-1] + bytes([content[-1] ^ 1]),
            "empty": b"",
            "other": b"x" * len(content),
        }[damage]
    )
    assert opened(folder, blobs).find(key(0)) is None


def test_where_nothing_can_be_kept_it_is_found_in_this_process(blobs: Blobs) -> None:
    stored = opened(Path("/dev/null/pieces"), blobs)
    assert stored.find(key(0)) is None
    stored.record(blobs.add(bytes(33)), pieces(0))
    assert stored.find(key(0)) is not None


def test_the_oldest_tables_go(folder: Path, blobs: Blobs) -> None:
    stored = opened(folder, blobs)
    for number in range(70):
        stored.record(blobs.add(bytes([number]) * 33), pieces(number * 10))
    assert len(list(folder.iterdir())) == 64


def test_threads_find_and_record_at_once(folder: Path, blobs: Blobs) -> None:
    stored = opened(folder, blobs)
    digests = [blobs.add(bytes([number]) * 33) for number in range(8)]
    failures: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            stored.record(digests[number], pieces(number * 10))
            found = stored.find(key(number * 10))
            if found is None or found.open().read(1) != bytes([number]):
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(opened(folder, blobs).find(key(number * 10)) for number in range(8))
