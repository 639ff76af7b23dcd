from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from pybuild.errors import ContextError
from pybuild.files.ignore import IgnoreMatcher, read_patterns
from quickness import seconds


@pytest.mark.parametrize(
    ("patterns", "excluded", "kept"),
    [
        (["a"], ["a", "a/b", "a/b/c"], ["b", "ab", "b/a"]),
        (["*/a"], ["b/a", "b/a/c"], ["a", "b/c/a"]),
        (["**/a"], ["a", "b/a", "b/c/a/d"], ["ba", "b/ca"]),
        (["**a"], ["a", "ba", "b/ca", "b/a"], ["ab", "b/ab"]),
        (["**a*"], ["a", "ab", "b/ab"], ["ba", "b/ca"]),
        (["a**"], ["a", "ab", "ab/c"], ["b", "b/a"]),
        (["a/**"], ["a/b", "a/b/c"], ["a", "ab"]),
        (["a/**/b"], ["a/b", "a/c/b", "a/c/d/b"], ["a", "a/cb", "b"]),
        (["a**b"], ["ab", "ax/b", "a/b"], ["axb", "a/xb"]),
        (["**/*.py[co]"], ["a.pyc", "b/a.pyo"], ["a.py", "b/a.pyx"]),
        (["a?c"], ["abc", "a\xe9c"], ["ac", "a/c", "abbc"]),
        (["[^a]b"], ["bb"], ["ab", "b"]),
        ([r"\*"], ["*"], ["a"]),
        ([r"[\]]"], ["]"], ["a"]),
        (["**"], ["a", "a/b"], ["", "."]),
        (["*", "!a"], ["b", "b/a"], ["a", "a/b"]),
        (["*", "!a", "a/b"], ["a/b", "c"], ["a", "a/c"]),
        (["a", "!a/b/c"], ["a", "a/b", "a/d"], ["a/b/c", "a/b/c/d"]),
        (["!a", "*"], ["a"], []),
        (["*.md", "!README*.md", "README-secret.md"], ["x.md", "README-secret.md"], ["README.md"]),
        (["a/../b", "./c/", "d//e"], ["b", "c", "d/e"], ["a", "d"]),
        (["(a|b)+$"], ["(a|b)+$"], ["a", "aa"]),
        (["a/**/**/b"], ["a/b", "a/x/y/b"], ["b"]),
        ([" a ", "", "\t"], ["a"], ["b"]),
        (["x/*/a**b"], ["x/y/ax/b"], ["x/y/ax/ab"]),
        (["**/a**b"], ["ax/ab", "x/aaa/b"], ["x/xab", "ba"]),
        (["caf\udce9"], ["caf\udce9"], ["caf\xe9"]),
    ],
)
def test_patterns_exclude_paths(
    patterns: Sequence[str], excluded: Sequence[str], kept: Sequence[str]
) -> None:
    matcher = IgnoreMatcher(patterns)
    assert [path for path in excluded if not matcher.excludes(path)] == []
    assert [path for path in kept if matcher.excludes(path)] == []


def test_the_order_of_questions_does_not_matter() -> None:
    patterns = ["a", "!a/b", "**/c*", "!x/c1"]
    paths = ["a", "a/b", "a/b/c", "a/b/c/d", "x/c1", "x/c2", "c", "a/z"]
    alone = [IgnoreMatcher(patterns).excludes(path) for path in paths]
    matcher = IgnoreMatcher(patterns)
    together = [matcher.excludes(path) for path in reversed(paths)][::-1]
    assert alone == together == [True, False, True, True, False, True, True, True]


@pytest.mark.parametrize(
    ("patterns", "folder", "whole"),
    [
        (["a"], "a", True),
        (["a"], "a/b", True),
        (["a"], "b", False),
        (["a/*"], "a", False),
        (["a", "!a/b/c"], "a", False),
        (["a", "!a/b/c"], "a/b", False),
        (["a", "!a/b/c"], "a/d", True),
        (["a", "!**/keep"], "a", False),
        (["a", "!keep"], "a", True),
        (["!a/b", "a"], "a", True),
        (["a", "!a"], "a", False),
        (["a", "!a", "a/b"], "a/b", True),
        (["**"], "", False),
        ([], "a", False),
    ],
)
def test_a_walk_may_skip_a_folder_when_nothing_below_is_wanted(
    patterns: Sequence[str], folder: str, whole: bool
) -> None:
    matcher = IgnoreMatcher(patterns)
    assert matcher.excludes_all_below(folder) is whole
    if whole:
        assert matcher.excludes(folder)
        assert matcher.excludes(f"{folder}/b/c/keep")


@pytest.mark.parametrize(
    "pattern", ["!", "[", "[]", "[^]", "a[", "[a-]", "[-a]", "[b-a]", "a\\", "[a\\", "x" * 5000]
)
def test_a_wrong_pattern_is_an_error(pattern: str) -> None:
    with pytest.raises(ContextError):
        IgnoreMatcher(["ok", pattern])


@pytest.mark.parametrize(
    ("data", "patterns"),
    [
        (b"", []),
        (b"a\n\n  b \r\n#c\n #d\n", ["a", "b", "#d"]),
        (b"\xef\xbb\xbf#c\na", ["a"]),
        (b"/a\n//b\n/\n!/c\n! d", ["a", "b", "/", "!c", "!d"]),
        (b"a/./b/../c/\n./\n..", ["a/c", ".", ".."]),
        (b"caf\xe9", ["caf\udce9"]),
    ],
)
def test_an_ignore_file_has_a_pattern_a_line(data: bytes, patterns: list[str]) -> None:
    assert read_patterns(data) == patterns


def test_an_endless_line_is_refused() -> None:
    with pytest.raises(ContextError):
        read_patterns(b"a\n" + b"x" * (10 << 20))


@pytest.mark.parametrize(
    "pattern",
    [
        "**/" * 50 + "b",
        "**" * 50,
        "*a" * 50 + "b",
        "a*" * 200 + "b",
        "**/*a" * 100 + "b",
        "?*" * 400,
    ],
)
def test_no_pattern_is_slow(pattern: str) -> None:
    matcher = IgnoreMatcher([pattern])
    started = time.process_time()
    matcher.excludes("a" * 4000)
    matcher.excludes("a/" * 1000 + "a")
    matcher.excludes("ab/" * 1000 + "c")
    assert time.process_time() - started < 2


def test_twenty_thousand_paths_and_thirty_patterns_take_a_second_at_most() -> None:
    patterns = [f"**/*.{suffix}" for suffix in ("pyc", "o", "log", "tmp", "swp", "bak", "orig")]
    patterns += [f"build{n}" for n in range(8)] + [f"docs/{n}/**" for n in range(8)]
    patterns += [".git", "**/node_modules", "**/.cache/**", "!**/keep.log", "a/*/c?", "/x", "*~"]
    assert len(patterns) == 30
    paths = [
        f"src/package{a}/module{b}/file_number_{c}.py"
        for a in range(20)
        for b in range(20)
        for c in range(50)
    ]

    def match() -> None:
        matcher = IgnoreMatcher(patterns)
        assert sum(map(matcher.excludes, paths)) == 0

    assert seconds(match, 3) < 1
