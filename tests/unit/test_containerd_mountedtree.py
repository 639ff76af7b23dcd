"""A root with mounts in it, as a process sees it."""

from __future__ import annotations

import pytest

from pybuild.files.trees import MemoryTree, resolve
from pybuild.oci.layerindex import Kind
from pybuild.testkit.workbench import file, folder, symlink
from pybuild_containerd.mountedtree import MountedTree

ROOT = MemoryTree([folder(b"a"), file(b"a/f", b"root's"), folder(b"b"), symlink(b"l", b"/a")])
SOURCE = MemoryTree([folder(b"s"), file(b"s/f", b"source's"), symlink(b"s/l", b"../b")])


@pytest.fixture
def tree() -> MountedTree:
    tree = MountedTree(ROOT)
    tree.mount(b"a", Kind.DIRECTORY, SOURCE, b"s")
    tree.mount(b"a/t", Kind.DIRECTORY)
    tree.mount(b"new/deep/file", Kind.FILE)
    tree.mount(b"one", Kind.FILE, SOURCE, b"s/f")
    return tree


def test_a_mount_hides_what_is_below_and_shows_its_source(tree: MountedTree) -> None:
    entry = tree.get(b"a/f")
    assert entry is not None
    assert entry.path == b"a/f"
    assert tree.open(b"a/f").read() == b"source's"
    assert tree.open(b"one").read() == b"source's"
    assert tree.children(b"a") == [b"f", b"l", b"t"]
    assert tree.children(b"a/t") == []
    assert tree.get(b"a/t/f") is None


def test_what_has_no_mount_is_the_roots(tree: MountedTree) -> None:
    assert tree.get(b"b") == ROOT.get(b"b")
    assert tree.children(b"") == [b"a", b"b", b"l", b"new", b"one"]


def test_parents_of_a_mount_point_are_folders(tree: MountedTree) -> None:
    kinds = [tree.get(path).kind for path in (b"new", b"new/deep", b"new/deep/file")]  # type: ignore[union-attr]
    assert kinds == [Kind.DIRECTORY, Kind.DIRECTORY, Kind.FILE]
    assert tree.children(b"new") == [b"deep"]


def test_links_are_followed_from_and_to_mounts(tree: MountedTree) -> None:
    assert resolve(tree, b"l/l/x") == b"b/x"
    assert resolve(tree, b"l/t/x") == b"a/t/x"


def test_the_latest_mount_is_on_top(tree: MountedTree) -> None:
    tree.mount(b"a", Kind.DIRECTORY, ROOT, b"a")
    assert tree.open(b"a/f").read() == b"root's"
