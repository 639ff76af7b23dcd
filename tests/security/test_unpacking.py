"""Layers unpacked by workers: what a process sees on them, and nothing outside changes."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pybuild.errors import InvalidImage
from pybuild.oci.layertar import read_index
from pybuild.oci.tarformat import Member
from unpacking import (
    FIFO,
    FILE,
    FOLDER,
    HARD,
    LINK,
    Layers,
    file,
    in_tree,
    layers_in,
    member,
    tar,
)


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[Layers]:
    with layers_in(tmp_path) as made:
        yield made


def random_member(chance: random.Random, earlier: list[bytes]) -> Member | tuple[Member, bytes]:
    """Something that a layer may have, with few names, so that they meet."""
    name = b"/".join(chance.choice([b"a", b"b", b"c"]) for _ in range(chance.randrange(1, 5)))
    folder, slash, last = name.rpartition(b"/")
    fields = {
        "mode": chance.choice([0o644, 0o700, 0o4755, 0o2711, 0]),
        "uid": chance.randrange(3),
        "gid": chance.randrange(3),
        "mtime": chance.randrange(10**9),
    }
    match chance.randrange(12):
        case 0 | 1 | 2:
            earlier.append(name)
            return file(name, b"x" * chance.randrange(700), **fields)
        case 3 | 4 | 5:
            return member(name + b"/", FOLDER, **fields)
        case 6:
            target = chance.choice([b"a", b"../b", b"/c", b"/a/b", b"nowhere"])
            return member(name, LINK, link=target, **fields)
        case 7:
            return member(name, HARD, link=chance.choice(earlier), **fields)
        case 9:
            return member(name, FIFO, **fields)
        case 8 | 10:
            return member(folder + slash + b".wh." + last, FILE)
        case _:
            return member(folder + slash + b".wh..wh..opq", FILE)


def random_layer(chance: random.Random, earlier: list[bytes]) -> bytes:
    """Some of those, without what a tar can't have."""
    members: list[Member | tuple[Member, bytes]] = []
    for _ in range(chance.randrange(1, 25)):
        new = random_member(chance, earlier)
        with suppress(InvalidImage):
            read_index(io.BytesIO(tar(*members, new)))
            members.append(new)
    return tar(*members)


@pytest.mark.parametrize("seed", range(10))
def test_random_layers_look_the_same_mounted_and_in_the_tree(layers: Layers, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    earlier: list[bytes] = [b"a"]
    for _ in range(8):
        layer = layers.write(random_layer(chance, earlier))
        try:
            layers.unpack(layer)
        except InvalidImage:  # a hard link to nothing
            assert not list(layer.folder.iterdir())
            continue
        tree = layers.tree()
        expected = in_tree(tree, owners=layers.owners)
        seen, inodes = layers.shown()
        assert seen == expected
        for entry in layer.index:
            shown = tree.get(entry.path)
            if entry.digest and shown is not None and shown.link:
                assert inodes[shown.path.decode()] == inodes[shown.link.decode()]
    merged, _ = layers.shown([layers.merged()])
    assert merged == in_tree(layers.tree(), owners=layers.owners)
