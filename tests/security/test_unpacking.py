"""Layers unpacked by workers: what a process sees on them, and nothing outside changes."""

from __future__ import annotations

import gzip
import io
import os
import random
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pybuild.errors import CopyFailed, InvalidImage
from pybuild.oci.layertar import read_index
from pybuild.oci.tarformat import Member
from pybuild.sandbox.mapping import Kind as MappingKind
from sandboxing import best_mapping, run_tests_as_user
from unpacking import (
    BLOCK,
    CHARACTER,
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


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layers]:
    with layers_in(tmp_path_factory.mktemp("layers")) as made:
        yield made


@pytest.fixture
def layers(shared: Layers) -> Layers:
    return shared.anew()


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


@pytest.mark.parametrize("seed", range(8))
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


OTHER = "/outside-of-the-image"


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of the host, which no layer may change or show."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "secret").write_text("secret")
    (folder / "secret").chmod(0o640)
    (folder / "empty").mkdir(mode=0o750)
    before = state_of(folder)
    yield folder
    assert state_of(folder) == before


def state_of(folder: Path) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        times = (status.st_mtime_ns, status.st_ctime_ns)
        found.append((path, status.st_mode, status.st_uid, status.st_nlink, *times, content))
    return found


def hostile_chains(outside: Path) -> dict[str, list[bytes]]:
    """Chains of layers that would write outside if anything followed a link."""
    there = os.fsencode(outside)
    link = member(b"l", LINK, link=there, mode=0o777, uid=1)
    up = member(b"l", LINK, link=b"../" * 30 + there[1:])
    secret = member(b"l", LINK, link=there + b"/secret")
    inner = file(b"l/secret", b"changed")
    return {
        "file through a link": [tar(link, inner)],
        "file through a link upwards": [tar(up, inner)],
        "file through a link of a link": [
            tar(up, member(b"m", LINK, link=b"l"), file(b"m/x", b"x"))
        ],
        "file through a lower link": [tar(link), tar(inner)],
        "folder through a lower link": [tar(link), tar(member(b"l/empty/", FOLDER, mode=0o777))],
        "folder over a lower link": [tar(link), tar(member(b"l/", FOLDER, mode=0o777))],
        "removal through a link": [tar(link, member(b"l/.wh.secret"))],
        "removal through a lower link": [tar(link), tar(member(b"l/.wh.secret"))],
        "opaque through a lower link": [tar(link), tar(member(b"l/.wh..wh..opq"))],
        "file over a link": [tar(secret, file(b"l", b"changed", mode=0o777))],
        "file over a lower link": [tar(secret), tar(file(b"l", b"changed", mode=0o777))],
        "hard link to a link": [tar(secret, member(b"h", HARD, link=b"l", mode=0o777))],
        "file over a hard link to a link": [
            tar(secret, member(b"h", HARD, link=b"l"), file(b"h", b"changed"))
        ],
        "hard link to a lower link": [tar(secret), tar(member(b"h", HARD, link=b"l"))],
        "hard link through a link": [tar(link, member(b"h", HARD, link=b"l/secret"))],
        "hard link through a lower link": [tar(link), tar(member(b"h", HARD, link=b"l/secret"))],
        "hard link relative to where we are": [tar(member(b"h", HARD, link=b"etc/passwd"))],
        "hard link to an absolute path": [tar(member(b"h", HARD, link=there + b"/secret"))],
        "hard link before its file": [tar(member(b"h", HARD, link=b"f"), file(b"f", b"x"))],
        "hard links in a circle": [
            tar(member(b"a", HARD, link=b"b"), member(b"b", HARD, link=b"a"))
        ],
        "FIFO through a lower link": [tar(link), tar(member(b"l/fifo", FIFO))],
        "link to this process": [
            tar(member(b"l", LINK, link=b"/proc/self/cwd")),
            tar(file(b"l/x", b"x"), member(b"l/.wh.tmp")),
        ],
        "link to a descriptor": [tar(member(b"l", LINK, link=b"/proc/self/fd/3")), tar(inner)],
        "removal of what is hidden": [tar(link), tar(member(b".wh.l"), member(b"l/.wh.secret"))],
    }


@pytest.mark.parametrize("name", hostile_chains(Path(OTHER)))
def test_a_hostile_layer_changes_nothing_outside(layers: Layers, outside: Path, name: str) -> None:
    unpacked = True
    for blob in hostile_chains(outside)[name]:
        layer = layers.write(blob)
        try:
            layers.unpack(layer)
        except InvalidImage:
            unpacked = False
            assert not list(layer.folder.iterdir())
    seen, _ = layers.shown()
    assert seen == in_tree(layers.tree(), owners=layers.owners)
    assert unpacked or "hard link" in name


def test_odd_names_arrive_exactly(layers: Layers) -> None:
    names = [b"\xff\xfe", b"n" * 255, b"new\nline", b"-rf", b" ", "e\u0301".encode(), b".wh"]
    layer = layers.add(*(file(b"d/" + name, name) for name in names))
    found = (os.fsencode(path.name) for path in (layer.folder / "d").iterdir())
    assert sorted(found) == sorted(names)
    for name in names:
        assert Path(os.fsdecode(bytes(layer.folder) + b"/d/" + name)).read_bytes() == name


def test_the_deepest_path_of_a_tar_is_unpacked_and_removed(layers: Layers) -> None:
    deep = b"d/" * 2000
    layer = layers.add(file(deep + b"f", b"x"), member(deep, FOLDER, mode=0))
    _, text = layers.run("cat", os.fsdecode(b"/" + deep + b"f"))
    assert text == "x"
    layers.workers.remove([layer.folder])
    assert not layer.folder.exists()


def test_what_a_step_made_deeper_than_any_image_can_be_is_refused_and_removed(
    layers: Layers,
) -> None:
    part = "d/" * 1000
    script = f"cd /; for i in 1 2 3; do /.probe/busybox mkdir -p {part}; cd {part}; done; echo x >f"
    upper, _ = layers.run("sh", "-c", script)
    with pytest.raises(CopyFailed, match="more than 4096 bytes"):
        layers.pack(upper)
    layers.workers.remove([upper])
    assert not upper.exists()


@pytest.mark.parametrize("change", ["other content", "cut", "garbage", "empty", "more"])
def test_a_blob_that_is_not_what_its_index_was_read_from_leaves_nothing(
    layers: Layers, change: str
) -> None:
    layer = layers.write(gzip.compress(tar(member(b"d/", FOLDER), file(b"d/f", b"x" * 9000))))
    good = layer.blob.read_bytes()
    layer.blob.write_bytes(
        {
            "other content": gzip.compress(tar(file(b"d/f", b"y" * 9000))),
            "cut": good[:-20],
            "garbage": b"\0" * 100,
            "empty": b"",
            "more": gzip.compress(gzip.decompress(good) + bytes(512)),
        }[change]
    )
    with pytest.raises(InvalidImage):
        layers.unpack(layer)
    assert not list(layer.folder.iterdir())


def test_devices_are_made_where_they_can_be_and_always_hide_what_is_below(
    layers: Layers,
) -> None:
    layers.add(file(b"d/null", b"x"), file(b"d/disk", b"x"))
    layer = layers.add(
        member(b"d/null", CHARACTER, device=(1, 3), mode=0o666, mtime=5),
        member(b"d/disk", BLOCK, device=(8, 0), mode=0o600, mtime=5),
        member(b"new", CHARACTER, device=(1, 3)),
    )
    seen, _ = layers.shown()
    if layers.sandbox.mapping.kind is MappingKind.INIT:
        assert seen == in_tree(layers.tree(), owners=True)
        assert stat.S_ISBLK((layer.folder / "d/disk").lstat().st_mode)
    else:
        assert sorted(seen) == ["d"]
        assert not (layer.folder / "new").exists()


def test_owners_that_the_sandbox_does_not_have_are_refused_in_words(layers: Layers) -> None:
    layer = layers.write(tar(file(b"f", b"x", uid=4_000_000)))
    if layers.sandbox.mapping.kind in (MappingKind.INIT, MappingKind.SINGLE):
        layers.unpack(layer)
        assert layer.folder.joinpath("f").read_bytes() == b"x"
        return
    with pytest.raises(InvalidImage, match="f in the layer belongs to 4000000:0"):
        layers.unpack(layer)
    assert not list(layer.folder.iterdir())


def test_marks_of_fuse_overlayfs_in_an_image_are_left_out(layers: Layers) -> None:
    marks = (("user.fuseoverlayfs.opaque", b"y"), ("user.mine", b"kept"))
    layer = layers.add(member(b"d/", FOLDER, xattrs=marks))
    assert os.listxattr(layer.folder / "d") == ["user.mine"]


@pytest.mark.root
def test_the_same_holds_without_a_user_namespace(tmp_path: Path) -> None:
    mapping = best_mapping(tmp_path, namespace_for_root=False)
    with layers_in(tmp_path, mapping) as layers:
        test_devices_are_made_where_they_can_be_and_always_hide_what_is_below(layers.anew())
        test_owners_that_the_sandbox_does_not_have_are_refused_in_words(layers.anew())
        test_random_layers_look_the_same_mounted_and_in_the_tree(layers.anew(), 1000)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["range", "single"])
def test_the_same_holds_for_other_users(tmp_path: Path, kind: str) -> None:
    run_tests_as_user(tmp_path, [__file__], subordinate=kind == "range")
