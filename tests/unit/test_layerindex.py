from __future__ import annotations

import random

import pytest

from pybuild.errors import InvalidImage
from pybuild.oci.layerindex import Entry, Kind, LayerIndex
from quickness import seconds

ENTRIES = [
    Entry(b"a", Kind.DIRECTORY, 0o755),
    Entry(b"a", Kind.OPAQUE),
    Entry(b"a-b", Kind.FILE, size=3, digest="sha256:" + "ab" * 32),
    Entry(b"a/b/c", Kind.FILE, mtime=-1, uid=2**32 - 1),
    Entry(b"a/b-c", Kind.SYMLINK, link=b"\xff"),
    Entry(b"a/x", Kind.WHITEOUT),
    Entry(b"a/y/z", Kind.WHITEOUT),
    Entry(b"dev", Kind.CHARACTER, device=(1, 3)),
    Entry(b"dev2", Kind.FILE, xattrs=(("user.a", b"\0\1"), ("user.b", b""))),
    Entry(b"x", Kind.WHITEOUT),
    Entry(b"x", Kind.DIRECTORY),
]


def index() -> LayerIndex:
    shuffled = random.Random(3).sample(ENTRIES, len(ENTRIES))  # noqa: S311
    return LayerIndex(shuffled, [100 if e.path == b"a-b" else -1 for e in shuffled])


@pytest.mark.parametrize("stored", [False, True])
def test_lookups_answer_the_same_fresh_and_from_stored_bytes(stored: bool) -> None:
    found = LayerIndex.from_bytes(index().to_bytes()) if stored else index()
    assert len(found) == len(ENTRIES)
    assert found.children(b"") == [b"a", b"a-b", b"dev", b"dev2", b"x"]
    assert found.children(b"a") == [b"b-c", b"b"]
    assert found.children(b"a-b") == []
    assert found.removed_children(b"a") == [b"x"]
    assert found.removed_children(b"") == [b"x"]
    assert found.removes(b"x")
    assert not found.removes(b"a")
    assert found.is_opaque(b"a")
    assert not found.is_opaque(b"x")
    assert found.has_below(b"a/b")
    assert not found.has_below(b"a/y")
    assert found.touches(b"a/y")
    assert found.touches(b"a/y/z")
    assert found.touches(b"")
    assert not found.touches(b"a-")
    assert found.get(b"a/b") is None
    assert found.get(b"a/x") is None
    assert found.offset(b"a-b") == 100
    assert found.offset(b"a") == -1
    assert found.offset(b"none") == -1
    assert set(found.entries) == set(ENTRIES)


def test_equal_indexes_have_equal_bytes() -> None:
    assert index().to_bytes() == LayerIndex.from_bytes(index().to_bytes()).to_bytes()


def test_an_index_without_entries_can_be_stored() -> None:
    assert LayerIndex.from_bytes(LayerIndex().to_bytes()).entries == ()


def test_damaged_bytes_are_refused_wherever_they_are_cut_or_changed() -> None:
    good = index().to_bytes()
    for end in range(len(good)):
        with pytest.raises(InvalidImage):
            LayerIndex.from_bytes(good[:end])
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 0x41
        with pytest.raises(InvalidImage):
            LayerIndex.from_bytes(bytes(bad))


def test_opening_the_index_of_a_large_layer_is_quick() -> None:
    entries = [
        Entry(b"usr/share/%d/file-%d" % (i % 100, i), Kind.FILE, size=i, digest=f"sha256:{i:064x}")
        for i in range(10_000)
    ]
    stored = LayerIndex(entries).to_bytes()

    def look() -> None:
        assert LayerIndex.from_bytes(stored).get(b"usr/share/7/file-7") is not None

    assert seconds(look, 5) < 0.05
