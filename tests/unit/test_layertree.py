from __future__ import annotations

import io
import random
import tracemalloc
from typing import BinaryIO

import pytest

from pybuild.errors import InvalidImage
from pybuild.files import layertree
from pybuild.files.layertree import LayerTree
from pybuild.files.trees import walk
from pybuild.oci.layerindex import Entry, Kind, LayerIndex


def layer(*entries: Entry) -> LayerIndex:
    """Files get their position as the offset; a hard link in the layer its target's."""
    offsets = {e.path: i for i, e in enumerate(entries) if e.kind is Kind.FILE and not e.link}
    return LayerIndex(
        entries, [offsets.get(e.link or e.path, -1) if e.kind is Kind.FILE else -1 for e in entries]
    )


def opened(position: int, entry: Entry, offset: int) -> BinaryIO:
    return io.BytesIO(f"{position}:{entry.path.decode()}:{offset}".encode())


def tree(*layers: LayerIndex) -> LayerTree:
    return LayerTree(layers, opened)


def file(path: bytes, **fields: object) -> Entry:
    return Entry(path, Kind.FILE, **fields)  # type: ignore[arg-type]


def folder(path: bytes, **fields: object) -> Entry:
    return Entry(path, Kind.DIRECTORY, **fields)  # type: ignore[arg-type]


def removal(path: bytes) -> Entry:
    return Entry(path, Kind.WHITEOUT)


def opaque(path: bytes) -> Entry:
    return Entry(path, Kind.OPAQUE)


def link(path: bytes, target: bytes) -> Entry:
    return Entry(path, Kind.SYMLINK, link=target)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param([], "", id="no layers"),
        pytest.param([[folder(b"a"), file(b"a/x")]], "a a/x", id="one layer"),
        pytest.param([[file(b"a/b/x")]], "a a/b a/b/x", id="parents not listed"),
        pytest.param([[file(b"a/x")], [removal(b"a/x")]], "a", id="whiteout, parent only implied"),
        pytest.param([[folder(b"a"), file(b"a/x")], [removal(b"a")]], "", id="folder removed"),
        pytest.param([[file(b"a/x")], [removal(b"a")], [file(b"a/y")]], "a a/y", id="made anew"),
        pytest.param([[file(b"a/x")], [opaque(b"a"), file(b"a/y")]], "a a/y", id="opaque"),
        pytest.param([[file(b"a/x")], [opaque(b"")]], "", id="opaque root"),
        pytest.param([[file(b"a/x")], [file(b"a")]], "a", id="file over folder"),
        pytest.param(
            [[file(b"a/x")], [file(b"a")], [folder(b"a")]], "a", id="folder over file over folder"
        ),
        pytest.param([[link(b"a", b"b")], [file(b"a/x")]], "a a/x", id="folder over link"),
        pytest.param([[file(b"a/x")], [removal(b"a"), folder(b"a")]], "a", id="replaced at once"),
        pytest.param([[removal(b"a/x")], [file(b"b")]], "b", id="removal of nothing"),
        pytest.param([[file(b"a/b/x"), file(b"a/c")], [opaque(b"a/b")]], "a a/b a/c", id="inner"),
        pytest.param([[file(b"a-b"), file(b"a/b"), file(b"a.b")]], "a a-b a.b a/b", id="sorting"),
    ],
)
def test_layers_merge_as_mounted(layers: list[list[Entry]], expected: str) -> None:
    merged = tree(*(layer(*entries) for entries in layers))
    found = sorted(e.path.decode() for e in walk(merged, b"") if e.path)
    # an emptied folder that nobody lists isn't seen from above, yet exists where it was
    assert [p for p in found if p] == expected.split()


def test_a_folder_has_the_attributes_of_the_topmost_layer_that_lists_it() -> None:
    merged = tree(
        layer(folder(b"a", mode=0o700, uid=5)), layer(file(b"a/x")), layer(folder(b"a", mode=0o711))
    )
    found = merged.get(b"a")
    assert found is not None
    assert (found.mode, found.uid) == (0o711, 0)


def test_a_folder_that_no_layer_lists_is_roots() -> None:
    assert tree(layer(file(b"a/x"))).get(b"a") == Entry(b"a", Kind.DIRECTORY, 0o755)
    assert tree().get(b"") == Entry(b"", Kind.DIRECTORY, 0o755)


def test_nothing_is_found_below_a_file_or_link() -> None:
    merged = tree(layer(file(b"a/x"), file(b"f")), layer(link(b"a", b"/")))
    assert merged.get(b"a/x") is None
    assert merged.get(b"f/x") is None
    assert merged.children(b"a") == ()
    assert merged.children(b"f") == ()
    assert merged.children(b"none") == ()


def test_content_comes_from_the_topmost_layer() -> None:
    merged = tree(layer(file(b"x")), layer(file(b"y"), file(b"x")), layer(file(b"z")))
    assert merged.open(b"x").read() == b"1:x:1"
    with pytest.raises(InvalidImage, match="none is not a regular file"):
        merged.open(b"none")


def test_a_hard_link_in_a_layer_is_named_while_its_file_is_there() -> None:
    below = layer(file(b"a", size=3, mode=0o600), file(b"b", link=b"a", size=3, mode=0o600))
    found = tree(below).get(b"b")
    assert found is not None
    assert (found.link, found.size, found.mode) == (b"a", 3, 0o600)
    assert tree(below).open(b"b").read() == b"0:b:0"
    replaced = tree(below, layer(file(b"a", size=9)))
    found = replaced.get(b"b")
    assert found is not None
    assert (found.link, found.size) == (b"", 3)
    assert replaced.open(b"b").read() == b"0:b:0"


def test_a_hard_link_to_a_lower_layers_file_is_that_file() -> None:
    merged = tree(layer(file(b"a", size=3, uid=7)), layer(file(b"d/b", link=b"a")))
    found = merged.get(b"d/b")
    assert found is not None
    assert (found.link, found.size, found.uid) == (b"a", 3, 7)
    assert merged.open(b"d/b").read() == b"0:a:0"
    removed = tree(*merged.indexes, layer(removal(b"a")))
    found = removed.get(b"d/b")
    assert found is not None
    assert (found.link, found.size) == (b"", 3)


def test_a_hard_link_keeps_its_content_when_a_file_replaces_the_folder_of_its_target() -> None:
    merged = tree(
        layer(file(b"d/a", size=3, uid=7)), layer(file(b"b", link=b"d/a")), layer(file(b"d"))
    )
    found = merged.get(b"b")
    assert found is not None
    assert (found.link, found.size, found.uid) == (b"", 3, 7)
    assert merged.open(b"b").read() == b"0:d/a:0"


def test_the_layer_of_a_path_is_the_uppermost_that_has_it() -> None:
    merged = tree(layer(file(b"d/a")), layer(file(b"d/b")), layer(removal(b"d/a")))
    assert [merged.layer_of(path) for path in (b"d/b", b"d", b"d/a", b"none")] == [1, 1, None, None]


def test_hard_links_in_a_circle_have_no_content() -> None:
    merged = tree(layer(file(b"a", link=b"b"), file(b"b", link=b"a")))
    with pytest.raises(InvalidImage):
        merged.open(b"a")


def test_a_thousand_layers_and_a_deep_path_are_no_trouble() -> None:
    deep = b"/".join([b"d"] * 1500)
    layers = [layer(file(deep))] + [layer(file(b"f%d" % i)) for i in range(1000)]
    merged = tree(*layers)
    assert merged.get(deep) is not None
    assert len(merged.children(b"")) == 1001
    assert merged.get(b"f0") is not None


def test_a_tree_is_extended_by_a_layer_without_touching_the_first() -> None:
    base = tree(layer(file(b"a")))
    more = base.extended(layer(removal(b"a"), file(b"b")), opened)
    assert more.children(b"") == [b"b"]
    assert base.children(b"") == [b"a"]


def _random_layer(chance: random.Random) -> LayerIndex:
    entries: dict[tuple[bytes, bool], Entry] = {}
    for _ in range(chance.randint(0, 5)):
        path = b"/".join(chance.choice((b"a", b"b", b"a-b")) for _ in range(chance.randint(1, 3)))
        entry = chance.choice(
            (file(path), folder(path), link(path, b"a"), removal(path), opaque(path))
        )
        entries[path, entry.kind in {Kind.WHITEOUT, Kind.OPAQUE}] = entry
    return layer(*entries.values())


@pytest.mark.parametrize("noted", [0, 2, 500])
def test_a_tree_extended_layer_by_layer_is_that_of_all_layers(
    noted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layertree, "_MOST_NOTED", noted)
    chance = random.Random(noted)  # noqa: S311 - a choice of layers
    for _ in range(200):
        layers = [_random_layer(chance) for _ in range(chance.randint(2, 6))]
        grown = tree(layers[0])
        for index in layers[1:]:
            list(walk(grown, b""))  # what is known below mustn't be seen above
            grown.extended(_random_layer(chance), opened)  # nor a sibling
            grown = grown.extended(index, opened)
        whole = tree(*layers)
        assert list(walk(grown, b"")) == list(walk(whole, b""))
        assert grown.indexes == whole.indexes


def test_paths_deep_as_the_kernel_allows_take_little_memory_in_a_chain() -> None:
    deep = [layer(*(file(b"a/" * 2000 + b"%d/%d" % (n, m)) for m in range(400))) for n in range(9)]
    tracemalloc.start()
    grown = tree(deep[0])
    for index in deep[1:]:
        grown = grown.extended(index, opened)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert grown.indexes == tuple(deep)
    assert taken < 1 << 20
