"""A large layer is unpacked by several processes, and is as if one had done it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybuild.errors import InvalidImage
from sandboxing import run_tests_as_user
from unpacking import FOLDER, HARD, LINK, Layers, agrees, file, layers_in, member, tar

FOLDERS, FILES = 60, 50  # more files than are worth a second process


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[Layers]:
    with layers_in(tmp_path) as made:
        yield made


def large(last: int = 0) -> bytes:
    """A layer of many files, the last of which belongs to user `last`."""
    members = []
    for folder in range(FOLDERS):
        name = b"d%d" % folder
        members.append(member(name + b"/", FOLDER, mode=0o700 + folder % 8, mtime=folder))
        members += [
            file(b"%b/f%d" % (name, number), b"x" * number * 97, mode=0o600 + number % 8, mtime=9)
            for number in range(FILES)
        ]
        members.append(member(name + b"/link", LINK, link=b"f1"))
        members.append(member(name + b"/second", HARD, link=name + b"/f2", mode=0o602, mtime=9))
    members.append(file(b"big", os.urandom(5_000_000)))
    members.append(file(b"last", b"the end", uid=last))
    return tar(*members)


def test_a_large_layer_is_the_same_by_one_or_by_several(layers: Layers) -> None:
    blob = large()
    alone = layers.anew()
    size = alone.unpack(alone.write(blob))
    layers.add(member(b"base/", FOLDER))  # above it, the plain tar is taken
    assert layers.unpack(layers.write(blob)) == size
    agrees(alone)
    agrees(layers)


def test_an_error_in_any_share_empties_the_folder(layers: Layers) -> None:
    if not layers.owners:
        pytest.skip("inherent: with one id no owner is wrong")
    layers.add(member(b"base/", FOLDER))
    layer = layers.write(large(last=4_000_000_000))
    with pytest.raises(InvalidImage, match="last in the layer belongs to 4000000000:0"):
        layers.unpack(layer)
    assert list(layer.folder.iterdir()) == []
    again = layers.write(large())
    layers.unpack(again)
    agrees(layers)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["range", "single"])
def test_the_same_holds_for_other_users(tmp_path: Path, kind: str) -> None:
    run_tests_as_user(tmp_path, [__file__], subordinate=kind == "range")
