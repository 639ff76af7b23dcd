"""What steps change on unpacked layers comes back as layers, whatever ids the sandbox has."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybuild.errors import BackendFailed
from pybuild.oci.compression import Compression
from pybuild.oci.layerindex import Entry
from pybuild.sandbox.mapping import Kind as MappingKind
from pybuild_embedded.workers import Merge, Pack, Workers
from sandboxing import best_mapping, run_tests_as_user
from unpacking import (
    FOLDER,
    HARD,
    Layers,
    agrees,
    file,
    in_tree,
    layers_in,
    member,
    random_script,
    tar,
)

CAPABILITY = (("security.capability", bytes.fromhex("0100000200040000" + "00" * 12)),)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layers]:
    with layers_in(tmp_path_factory.mktemp("layers")) as made:
        yield made


@pytest.fixture
def layers(shared: Layers) -> Layers:
    return shared.anew()


@pytest.fixture
def based(layers: Layers) -> Layers:
    layers.add(
        member(b"d/", FOLDER, mode=0o755, uid=1, gid=2, mtime=10),
        file(b"d/f", b"content", mode=0o4755, uid=5, gid=6, mtime=10),
        file(b"d/moved", b"moves", mtime=10),
        file(b"gone", b"", mtime=10),
        member(b"keep/", FOLDER, mode=0o750, uid=3, mtime=10),
        file(b"keep/x", b"x", mtime=10),
        file(b"capable", b"program", mode=0o755, mtime=10, xattrs=CAPABILITY),
        file(b"none", b"secret", mode=0, uid=33, gid=33, mtime=10),
    )
    return layers


def changed(layers: Layers, script: str) -> dict[str, Entry]:
    """Run a script on the chain and pack what it changed: the layer's entries by kind and path."""
    upper, _ = layers.run("sh", "-c", f"cd /; b=/.probe/busybox; {script}")
    if layers.pack(upper) is None:
        return {}
    return {f"{e.kind.value} {e.path.decode()}": e for e in layers.chain[-1].index}


def test_a_step_that_changes_nothing_gives_no_layer_and_no_file(based: Layers) -> None:
    assert changed(based, "true") == {}
    # the overlay copies these up
    assert changed(based, "$b chmod 4755 d/f; $b touch -d @10 d/f") == {}
    assert changed(based, "echo >new; $b rm new") == {}


def test_removals_and_folders_made_anew(based: Layers) -> None:
    entries = changed(based, "$b rm gone; $b rm -r keep; $b mkdir keep; echo n >keep/n")
    assert list(entries) == ["whiteout gone", "dir keep", "opaque keep", "file keep/n"]
    assert (entries["dir keep"].mode, entries["file keep/n"].size) == (0o755, 2)
    agrees(based)


def test_what_is_made_again_in_a_folder_made_anew_is_kept_though_it_looks_the_same(
    layers: Layers,
) -> None:
    layers.add(
        member(b"a/", FOLDER, mode=0o755),
        member(b"a/closed/", FOLDER, mode=0o700),
        file(b"a/closed/f", b"x", mode=0o644, mtime=10),
        file(b"a/g", b"g", mode=0o644, mtime=10),
    )
    entries = changed(
        layers,
        "$b rm -r a; $b mkdir -p a/closed; $b chmod 700 a/closed; $b printf g >a/g; "
        "$b touch -d @10 a/g; $b chmod 644 a/g",
    )
    assert list(entries) == ["dir a", "opaque a", "dir a/closed", "file a/g"]
    agrees(layers)


def test_renaming_gives_a_removal_and_a_file(based: Layers) -> None:
    entries = changed(based, "$b mv d/moved d/there; $b mv gone d/gone")
    assert list(entries) == ["file d/gone", "whiteout d/moved", "file d/there", "whiteout gone"]
    agrees(based)


def test_modes_and_owners(based: Layers) -> None:
    entries = changed(
        based,
        "$b chmod 700 d/f; $b chown 7:8 none; $b chown 9 keep; echo s >mine; $b chown 33:34 mine; "
        "$b chmod 0 mine",
    )
    found = {name: (e.mode, e.uid, e.gid) for name, e in entries.items()}
    if based.owners:
        assert found == {
            "file d/f": (0o700, 5, 6),
            "dir keep": (0o750, 9, 0),
            "file mine": (0, 33, 34),
            "file none": (0, 7, 8),
        }
    else:  # what is below keeps its owner, and what is new is root's
        assert found == {"file d/f": (0o700, 5, 6), "file mine": (0, 0, 0)}
    assert entries["file mine"].digest == f"sha256:{_sha256(b's' + bytes([10]))}"
    agrees(based)


def _sha256(content: bytes) -> str:
    import hashlib  # noqa: PLC0415

    return hashlib.sha256(content).hexdigest()


def test_capabilities_are_the_same_bytes_in_every_user_namespace(based: Layers) -> None:
    entries = changed(based, "$b chmod 700 capable")
    assert list(entries) == ["file capable"]
    assert entries["file capable"].xattrs == CAPABILITY


def test_hard_links_have_their_content_once(based: Layers) -> None:
    entries = changed(based, "echo x >b; $b ln b c; $b ln b a; $b ln d/f d/g")
    links = {name: entry.link for name, entry in entries.items()}
    assert links == {
        "file a": b"",
        "file b": b"a",
        "file c": b"a",
        "file d/f": b"",
        "file d/g": b"d/f",
    }
    agrees(based)


def test_a_file_may_have_names_in_more_folders_than_are_kept_open(layers: Layers) -> None:
    names = [b"d%d/name" % number for number in range(300)]
    links = [member(name, HARD, link=b"first") for name in names]
    layers.add(member(b"base/", FOLDER))
    layers.add(file(b"first", b"content"), *links)
    agrees(layers)


def test_a_later_step_sees_what_earlier_ones_left(based: Layers) -> None:
    changed(based, "$b rm -r keep; echo 1 >one")
    changed(based, "$b mkdir keep; echo 2 >keep/two; $b rm one")
    changed(based, "$b mv keep kept; $b mkdir one")
    agrees(based)
    seen, _ = based.shown([based.merged()])
    assert seen.keys() == in_tree(based.tree(), owners=True).keys()


def test_times_after_the_newest_become_it(based: Layers) -> None:
    upper, _ = based.run("sh", "-c", "cd /; echo x >new; /.probe/busybox touch -d @5 old")
    assert based.pack(upper, newest=1000) is not None
    assert [entry.mtime for entry in based.chain[-1].index] == [1000, 5]


def test_marks_of_fuse_overlayfs_are_removals(based: Layers) -> None:
    upper = based.fresh("upper")
    for folder in ("keep", "d", "fresh"):
        (upper / folder).mkdir(parents=True)
    for name in (".wh.gone", ".wh.absent", "keep/.wh..wh..opq", "d/.wh.f", "fresh/.wh..wh..opq"):
        (upper / name).touch()
    (upper / "keep/n").write_text("n")
    (upper / "keep").chmod(0o750)
    (upper / "d").chmod(0o755)
    assert based.pack(upper, fuse=True) is not None
    names = [f"{e.kind.value} {e.path.decode()}" for e in based.chain[-1].index]
    owned = [] if based.sandbox.mapping.kind is MappingKind.SINGLE else ["dir d"]
    assert names == [
        *owned,
        "whiteout d/f",
        "dir fresh",
        "whiteout gone",
        "dir keep",
        "opaque keep",
        "file keep/n",
    ]


@pytest.mark.parametrize("seed", range(6))
def test_random_steps_look_the_same_packed_and_mounted(layers: Layers, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    for _ in range(5):
        changed(layers, random_script(chance))
        agrees(layers)
    indexes = tuple(layer.index_file for layer in layers.chain)
    target = layers.fresh("merged")
    target.mkdir()
    # the lowest folder may show more layers than one
    if len(layers.chain) > 2:
        lower = layers.fresh("lower")
        lower.mkdir()
        lowest = tuple(layer.folder for layer in layers.chain[:2])
        layers.workers.merge(Merge(indexes[:2], lowest, lower, layers.owners))
        folders = (lower, *(layer.folder for layer in layers.chain[2:]))
        layers.workers.merge(Merge(indexes, folders, target, layers.owners))
        seen, _ = layers.shown([target])
        assert seen == in_tree(layers.tree(), owners=layers.owners)


def test_several_layers_are_packed_at_once(based: Layers) -> None:
    uppers = [based.run("sh", "-c", f"echo {i} >/{i}")[0] for i in range(6)]
    with Workers(based.sandbox, most=2) as workers:
        pending = [
            workers.pack(
                Pack(
                    upper=upper,
                    parents=(based.chain[0].index_file,),
                    blob=upper.with_name(f"{upper.name}.blob"),
                    index=upper.with_name(f"{upper.name}.index"),
                    newest=0,
                    owners=based.owners,
                    compression=Compression.GZIP,
                )
            )
            for upper in uppers
        ]
        packed = [each.result() for each in pending]
        assert [each.result() for each in pending] == packed
    assert len({each.diff.diff_id for each in packed if each is not None}) == 6
    assert all(each is not None and each.size > 0 for each in packed)


def test_a_worker_ends_with_its_sandbox_and_says_so(tmp_path: Path) -> None:
    with layers_in(tmp_path) as layers:
        layers.workers.measure([tmp_path])
        layers.sandbox.close()
        with pytest.raises(BackendFailed, match="ended in the middle"):
            layers.workers.measure([tmp_path])
        with pytest.raises(BackendFailed, match="closed"):
            layers.workers.measure([tmp_path])


@pytest.mark.root
@pytest.mark.parametrize(("option", "word"), [("size=8m", "space"), ("nr_inodes=40", "inodes")])
def test_a_full_disk_is_named_and_nothing_is_left(tmp_path: Path, option: str, word: str) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(small)]
    subprocess.run(mount, check=True)
    try:
        with layers_in(small) as layers:
            many = (file(b"f%d" % i, bytes(200_000)) for i in range(60))
            layer = layers.write(gzip.compress(tar(member(b"d/", FOLDER), *many)))
            with pytest.raises(BackendFailed, match=f"no {word} left on the file system {small}"):
                layers.unpack(layer)
            assert not list(layer.folder.iterdir())
            upper = layers.fresh("upper")
            upper.mkdir()
            layers.workers.remove([upper, layer.folder])
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.root
def test_a_full_disk_leaves_no_half_of_a_packed_layer(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(small)]
    subprocess.run(mount, check=True)
    try:
        with layers_in(small) as layers:
            upper = layers.fresh("upper")
            upper.mkdir()
            (upper / "f").write_bytes(os.urandom(3_000_000))
            before = set(small.iterdir())
            with pytest.raises(BackendFailed, match="no space left on the file system"):
                layers.pack(upper)
            assert set(small.iterdir()) == before
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.root
def test_the_same_holds_without_a_user_namespace(tmp_path: Path) -> None:
    with layers_in(tmp_path, best_mapping(tmp_path, namespace_for_root=False)) as layers:
        test_random_steps_look_the_same_packed_and_mounted(layers.anew(), 1000)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["range", "single"])
def test_the_same_holds_for_other_users(tmp_path: Path, kind: str) -> None:
    run_tests_as_user(tmp_path, [__file__], subordinate=kind == "range")
