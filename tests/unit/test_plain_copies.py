"""Plain copies of layers: what arrived is there once for whoever unpacks it."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from pybuild.errors import InvalidImage
from pybuild.oci.arriving import indexing
from pybuild.oci.descriptor import OCI_LAYER_GZIP, Descriptor, LayerDiff, digest_of
from pybuild.oci.tarformat import Member, header
from pybuild_embedded import plaincopies
from pybuild_embedded.plaincopies import PlainCopies

CONTENT = os.urandom(700_000)
TAR = header(Member(b"file", ord("0"), size=len(CONTENT))) + CONTENT + bytes(-len(CONTENT) % 512)
TAR += bytes(1024)
BLOB = gzip.compress(TAR)


class Discarding:
    """A sink that keeps nothing, and refuses what isn't `BLOB`."""

    def __init__(self) -> None:
        self.blob = b""

    def write(self, piece: bytes, /) -> None:
        self.blob += piece

    def restart(self) -> None:
        self.blob = b""

    def commit(self) -> None:
        if self.blob != BLOB:
            raise InvalidImage("another blob")


def layer(blob: bytes = BLOB, diff_id: str = digest_of(TAR)) -> LayerDiff:
    return LayerDiff(diff_id, Descriptor(OCI_LAYER_GZIP, digest_of(blob), len(blob)))


@pytest.fixture
def new_file(tmp_path: Path) -> Callable[[], Path]:
    numbers = count()
    return lambda: tmp_path / str(next(numbers))


def arrive(copies: PlainCopies, *parts: bytes | None, blob: bytes = BLOB) -> None:
    """Write the parts of a blob, for None beginning anew."""

    @contextmanager
    def sink(_: Descriptor) -> Iterator[Discarding]:
        yield Discarding()

    found: list[str] = []
    opened = indexing(sink, lambda digest, *_: found.append(digest), copies.copy)
    with opened(layer(blob).blob) as writing:
        for part in parts or [blob]:
            if part is None:
                writing.restart()
            else:
                for at in range(0, len(part), 100_000):
                    writing.write(part[at : at + 100_000])
        writing.commit()


@pytest.mark.parametrize("parts", [(), (BLOB[:300_000], None, BLOB), (b"x" * 500_000, None, BLOB)])
def test_a_copy_is_there_once(
    tmp_path: Path, new_file: Callable[[], Path], parts: tuple[bytes | None, ...]
) -> None:
    copies = PlainCopies(new_file)
    arrive(copies, *parts)
    with copies.taken(layer()) as path:
        assert path is not None
        assert path.read_bytes() == TAR
    with copies.taken(layer()) as path:
        assert path is None
    copies.close()
    assert list(tmp_path.iterdir()) == []


def test_a_layer_with_another_diff_id_has_no_copy(new_file: Callable[[], Path]) -> None:
    copies = PlainCopies(new_file)
    arrive(copies)
    with copies.taken(layer(diff_id=digest_of(b""))) as path:
        assert path is None


def test_what_is_no_layer_or_the_wrong_blob_leaves_nothing(
    tmp_path: Path, new_file: Callable[[], Path]
) -> None:
    copies = PlainCopies(new_file)
    for blob in (b"no layer", gzip.compress(bytes(10_000_000)), BLOB + b"more"):
        with pytest.raises(InvalidImage, match="another blob"):
            arrive(copies, blob=blob)
        assert list(tmp_path.iterdir()) == []
        with copies.taken(layer(blob)) as path:
            assert path is None


def test_copies_have_only_so_much_room(tmp_path: Path, new_file: Callable[[], Path]) -> None:
    copies = PlainCopies(new_file, most=len(TAR) + 100)
    arrive(copies)
    other = gzip.compress(TAR, 1)
    with pytest.raises(InvalidImage):  # the sink's, of another blob
        arrive(copies, blob=other)
    assert len(list(tmp_path.iterdir())) == 1
    for _ in range(3):  # the room is given back
        with copies.taken(layer()) as path:
            assert path is not None
        arrive(copies, BLOB[:400_000], None, BLOB)
    copies.close()


@pytest.mark.parametrize("blobs", [11, 13])
def test_a_disk_that_is_nearly_full_is_left_alone(
    new_file: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, blobs: int
) -> None:
    monkeypatch.setattr(plaincopies, "_free", lambda _: blobs * len(BLOB))
    copies = PlainCopies(new_file)
    arrive(copies)
    with copies.taken(layer()) as path:
        assert (path is None) == (blobs == 11)
    copies.close()


def test_where_no_file_can_be_made_there_is_no_copy(tmp_path: Path) -> None:
    copies = PlainCopies(lambda: tmp_path / "missing" / "file")
    arrive(copies)
    with copies.taken(layer()) as path:
        assert path is None
