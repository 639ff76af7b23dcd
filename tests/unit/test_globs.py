from __future__ import annotations

import time

import pytest

from pybuild.errors import CopyFailed
from pybuild.files.globs import expand, has_wildcards, literal, matches
from pybuild.files.trees import MemoryTree, NewEntry
from pybuild.oci.layerindex import Entry, Kind


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("abc", "abc", True),
        ("*", "", True),
        ("*", "abc", True),
        ("**", "abc", True),
        ("*c", "abc", True),
        ("a*", "ab", True),
        ("a*b?c*x", "abxbbxdbxebxczzx", True),
        ("a*b?c*x", "abxbbxdbxebxczzy", False),
        ("ab[c]", "abc", True),
        ("ab[b-d]", "abc", True),
        ("ab[e-g]", "abc", False),
        ("ab[^c]", "abc", False),
        ("ab[^e-g]", "abc", True),
        ("a\\*b", "a*b", True),
        ("a\\*b", "ab", False),
        ("a?b", "a☺b", True),
        ("a[^a]b", "a☺b", True),
        ("[à-ü]*", "é", True),
        ("[\\]a]", "]", True),
        ("[x\\-]", "-", True),
        ("[!a]", "!", True),
        ("?", "\udcff", True),
        ("", "", True),
        ("", "a", False),
    ],
)
def test_a_pattern_fits_as_in_go(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


@pytest.mark.parametrize("pattern", ["[", "[]a]", "[a", "[a-", "[-x]", "[x-]", "a\\", "[^"])
def test_a_pattern_that_is_not_well_formed_is_refused(pattern: str) -> None:
    with pytest.raises(CopyFailed, match="syntax error in the pattern"):
        matches(pattern, "a")


def test_a_hostile_pattern_takes_little_time() -> None:
    start = time.process_time()
    assert not matches("*a" * 100 + "b", "a" * 255)
    assert time.process_time() - start < 2


def test_wildcards_behind_a_backslash_are_none() -> None:
    assert has_wildcards("a*")
    assert has_wildcards("a[b]")
    assert not has_wildcards("a\\*\\?\\[")
    assert literal("a\\*\\\\b") == "a*\\b"


def test_a_pattern_selects_below_real_folders_only() -> None:
    names = [b"a/x.c", b"a/y.h", b"b/x.c", b"b/c/x.c", b"x.c"]
    tree = MemoryTree(
        [NewEntry(Entry(name, Kind.FILE)) for name in names]
        + [NewEntry(Entry(b"link", Kind.SYMLINK, link=b"a"))]
    )
    assert list(expand(tree, b"", "*/*.c")) == [b"a/x.c", b"b/x.c"]
    assert list(expand(tree, b"b", "*")) == [b"b/c", b"b/x.c"]
    assert list(expand(tree, b"", "l*")) == [b"link"]
    assert list(expand(tree, b"", "none*")) == []
    with pytest.raises(CopyFailed):
        list(expand(tree, b"", "none/[/x"))
