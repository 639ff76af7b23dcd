"""Steps on copies: layers applied to plain folders, and found again by comparing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybuild.errors import BackendFailed, InvalidImage, StepFailed
from sandboxing import best_mapping, run_tests_as_user
from unpacking import (
    CHARACTER,
    FIFO,
    FOLDER,
    HARD,
    LINK,
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
    with layers_in(tmp_path_factory.mktemp("copies")) as made:
        yield made


@pytest.fixture
def layers(shared: Layers) -> Layers:
    """A chain with a bit of everything."""
    layers = shared.anew()
    layers.add(
        member(b"a/", FOLDER, mode=0o750, uid=3, gid=4, mtime=10),
        file(b"a/b", b"content", mode=0o4755, uid=5, gid=6, mtime=10),
        member(b"a/again", HARD, link=b"a/b"),
        member(b"b/", FOLDER, mode=0o755, mtime=10, xattrs=(("user.kept", b"1"),)),
        file(b"b/a", b"x", mode=0o644, mtime=10, xattrs=CAPABILITY),
        member(b"c", LINK, link=b"b/a", mtime=10),
        member(b"p", FIFO, mode=0o600, mtime=10),
        member(b"g/", FOLDER, mode=0o700, mtime=10),
        file(b"g/h", b"h", mode=0o640, mtime=10),
    )
    return layers


def script(text: str) -> tuple[str, ...]:
    return "sh", "-c", f"cd /; b=/.probe/busybox; {text}"


def exactly(layers: Layers, folder: Path) -> None:
    """The folder looks to a process as the chain's tree says, to the second."""
    assert layers.shown([folder])[0] == in_tree(layers.tree(), owners=layers.owners)


def test_a_layer_applied_replaces_removes_and_covers_what_is_there(layers: Layers) -> None:
    copy = layers.laid_out()
    exactly(layers, copy)
    layers.add(
        member(b"a/", FOLDER, mode=0o711, mtime=20),
        member(b"a/.wh..wh..opq"),
        file(b"a/new", b"n", mtime=20),
        member(b"a/moved", HARD, link=b"b/a"),
        member(b"b", LINK, link=b"a", mtime=20),
        member(b"c/", FOLDER, mode=0o755, mtime=20),
        file(b"c/d/e", b"deep", mode=0o644, mtime=20),
        member(b".wh.p"),
    )
    layers.apply_to(copy, 1)
    exactly(layers, copy)
    exactly(layers, layers.laid_out())


def test_attributes_that_a_folder_loses_are_gone(layers: Layers) -> None:
    copy = layers.laid_out()
    layers.add(member(b"b/", FOLDER, mode=0o755, mtime=20))
    layers.apply_to(copy, 1)
    layers.run_in(copy, *script("true"))
    # compared in full, there would be a difference
    assert layers.run_in(copy, *script("$b chmod 700 b; $b chmod 755 b")) is None


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("true", []),
        ("$b touch -d @10 a/b; echo n >n; $b rm n", []),
        ("$b rm -r a; $b mkdir a; echo n >a/n", ["dir a", "opaque a", "file a/n"]),
        ("$b mv g/h e; $b rm p", ["file e", "whiteout g/h", "whiteout p"]),
        ("$b mv g f; $b ln -s f g", ["dir f", "file f/h", "symlink g"]),
        ("$b chmod 1777 b; $b rm c; $b mkdir c", ["dir b", "dir c"]),
        ("$b ln b/a b/z; $b mknod q p", ["file b/a", "file b/z", "fifo q"]),
        ("$b rm -r a b; echo f >a; $b mkdir -p b/b/b", None),
    ],
)
def test_the_layer_is_the_one_that_the_overlay_gives(
    layers: Layers, text: str, entries: list[str] | None
) -> None:
    other = layers.anew()
    other.chain += layers.chain
    copied = layers.run_in(layers.laid_out(), *script(text), newest=10)
    upper, _ = other.run(*script(text))
    overlaid = other.pack(upper, newest=10)
    assert (copied and copied.diff) == (overlaid and overlaid.diff)
    if entries is not None:
        found = layers.chain[-1].index if copied else ()
        assert [f"{e.kind.value} {e.path.decode()}" for e in found] == entries


@pytest.mark.parametrize("seed", range(3))
def test_random_steps_in_one_folder_are_what_their_layers_say(layers: Layers, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    copy, follower = layers.laid_out(), layers.laid_out()
    for _ in range(4):
        if layers.run_in(copy, *script(random_script(chance))) is not None:
            layers.apply_to(follower, len(layers.chain) - 1)
        agrees(layers, copy)
        exactly(layers, follower)


@pytest.mark.parametrize("seed", range(10, 12))
def test_random_steps_give_what_overlays_give(layers: Layers, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    other = layers.anew()
    other.chain += layers.chain
    copy = layers.laid_out()
    for number in range(4):
        # an overlay changes one name of a file alone
        step = script("$b rm a/again" if not number else random_script(chance, links=False))
        layers.run_in(copy, *step, newest=10)
        other.pack(other.run(*step)[0], newest=10)
        assert in_tree(layers.tree(), owners=True) == in_tree(other.tree(), owners=True)


def test_mount_points_vanish_unless_something_is_made_in_them(layers: Layers) -> None:
    copy = layers.laid_out()
    remove = layers.workers.make_points(copy, [(b"m", True), (b"m/n", True), (b"a/f", False)])
    assert (copy / "m/n").is_dir()
    remove()
    exactly(layers, copy)
    points = [(b"m", True), (b"m/n", True), (b"m/f", False)]
    remove = layers.workers.make_points(copy, points)
    layers.workers.record(copy, layers.fresh("record"))
    layers.run_in(copy, *script("$b mkdir m/kept"))
    remove()
    names = [e.path for e in layers.chain[-1].index]
    assert names == [b"m", b"m/kept"]
    agrees(layers, copy)


def test_mount_points_lead_nowhere_and_leave_what_is_there(layers: Layers) -> None:
    copy = layers.laid_out()
    with pytest.raises(BackendFailed, match="can't make mount points"):
        layers.workers.make_points(copy, [(b"c/x", False)])  # through a link
    layers.workers.make_points(copy, [(b"p", False)])()
    exactly(layers, copy)


def test_a_mount_point_that_was_moved_is_told(layers: Layers) -> None:
    copy = layers.laid_out()
    remove = layers.workers.make_points(copy, [(b"b/m", True)])
    layers.run_in(copy, *script("$b mv b d; $b mkdir -p b/m"))
    with pytest.raises(StepFailed, match="moved or removed b/m, where something was mounted"):
        remove()


def test_a_layer_that_is_not_what_it_should_be_leaves_nothing(layers: Layers) -> None:
    copy = layers.laid_out()
    layers.chain.append(layers.write(tar(file(b"n", b"new"))))
    layers.chain[-1].diff_id = layers.chain[0].diff_id
    with pytest.raises(InvalidImage, match="doesn't hold"):
        layers.apply_to(copy, 1)
    assert not list(copy.iterdir())


@pytest.mark.root
def test_the_same_holds_without_a_user_namespace(tmp_path: Path) -> None:
    with layers_in(tmp_path, best_mapping(tmp_path, namespace_for_root=False)) as shared:
        layers = shared.anew()
        layers.add(member(b"n", CHARACTER, device=(1, 3), mode=0o600, mtime=10))
        copy = layers.laid_out()
        exactly(layers, copy)
        test_random_steps_in_one_folder_are_what_their_layers_say(layers, 1000)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["range", "single"])
def test_the_same_holds_for_other_users(tmp_path: Path, kind: str) -> None:
    run_tests_as_user(tmp_path, [__file__], subordinate=kind == "range")
