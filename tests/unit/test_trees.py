from __future__ import annotations

import io

import pytest

from pybuild.errors import CopyFailed
from pybuild.files.trees import MemoryTree, NewEntry, resolve, shown, walk
from pybuild.oci.layerindex import Entry, Kind


def link(path: bytes, target: bytes) -> NewEntry:
    return NewEntry(Entry(path, Kind.SYMLINK, link=target))


def file(path: bytes, content: bytes = b"") -> NewEntry:
    return NewEntry(Entry(path, Kind.FILE, size=len(content)), lambda: io.BytesIO(content))


TREE = MemoryTree(
    [
        file(b"usr/bin/sh", b"shell"),
        link(b"bin", b"usr/bin"),
        link(b"abs", b"/usr"),
        link(b"usr/up", b"../../../../usr"),
        link(b"loop", b"loop2"),
        link(b"loop2", b"loop"),
        link(b"dangling", b"usr/none/x"),
        link(b"escape", b"/../../etc/passwd"),
        link(b"selfdir", b"."),
        NewEntry(Entry(b"hard", Kind.FILE, link=b"usr/bin/sh")),
    ]
)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"", b""),
        (b"/", b""),
        (b"usr/bin/sh", b"usr/bin/sh"),
        (b"/usr//./bin/", b"usr/bin"),
        (b"bin/sh", b"usr/bin/sh"),
        (b"bin", b"usr/bin"),
        (b"abs/bin/new", b"usr/bin/new"),
        (b"usr/up/bin", b"usr/bin"),
        (b"../../bin/sh", b"usr/bin/sh"),
        (b"bin/../up", b"usr"),
        (b"none/a/b", b"none/a/b"),
        (b"none/../bin", b"usr/bin"),
        (b"none/a/../../bin/sh", b"usr/bin/sh"),
        (b"dangling/y", b"usr/none/x/y"),
        (b"escape", b"etc/passwd"),
        (b"selfdir/" * 30 + b"bin", b"usr/bin"),
    ],
)
def test_paths_resolve_inside_of_the_root(path: bytes, expected: bytes) -> None:
    assert resolve(TREE, path) == expected


def test_the_last_link_stays_if_asked_for() -> None:
    assert resolve(TREE, b"bin", follow_last=False) == b"bin"
    assert resolve(TREE, b"abs/up", follow_last=False) == b"usr/up"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (b"loop", "too many levels of symbolic links in loop"),
        (b"loop/x", "too many levels"),
        (b"selfdir/" * 50, "too many levels"),
        (b"bin/sh/x", "usr/bin/sh is not a directory"),
        (b"a\0b", "not a valid path"),
        (b"a/" * 40_000, "not a valid path"),
    ],
)
def test_paths_that_lead_nowhere_are_refused(path: bytes, message: str) -> None:
    with pytest.raises(CopyFailed, match=message):
        resolve(TREE, path)


def test_walk_yields_parents_first_and_follows_no_link() -> None:
    found = [e.path for e in walk(TREE, b"usr")]
    assert found == [b"usr", b"usr/bin", b"usr/bin/sh", b"usr/up"]
    assert [e.path for e in walk(TREE, b"bin")] == [b"bin"]
    assert list(walk(TREE, b"none")) == []


def test_walk_goes_deep_without_recursion() -> None:
    deep = MemoryTree([file(b"/".join([b"d"] * 3000))])
    assert sum(1 for _ in walk(deep, b"d")) == 3000


def test_a_hard_link_in_memory_has_its_files_content() -> None:
    found = TREE.get(b"hard")
    assert found is not None
    assert (found.size, found.link) == (5, b"usr/bin/sh")
    assert TREE.open(b"hard").read() == b"shell"
    with pytest.raises(CopyFailed, match="bin is not a regular file"):
        TREE.open(b"bin")


def test_paths_are_shown_without_control_characters() -> None:
    assert shown(b"a\x1b[31m\n\xff") == "a\\x1b[31m\\n\\xff"
    assert shown("grün".encode()) == "grün"
    assert shown(b"") == "/"
