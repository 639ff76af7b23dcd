from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from building import LINUX, memory_backend

from pybuild.diffcommand import image_difference, parse_diff_arguments
from pybuild.errors import UnsupportedByBackend, UsageError
from pybuild.files.trees import MemoryTree, NewEntry
from pybuild.imagediff import Aspect, SettingDifference, compared_files, compared_settings
from pybuild.oci.image_config import ImageConfig
from pybuild.testkit.workbench import file, folder, symlink


def compared(before: list[NewEntry], after: list[NewEntry]) -> dict[str, Any]:
    """By path, what differs: + or -, or names of aspects."""
    return {
        found.path: "+"
        if found.before is None
        else "-"
        if found.after is None
        else [aspect.name for aspect in found.aspects]
        for found in compared_files(MemoryTree(before), MemoryTree(after))
    }


def test_equal_files_do_not_differ_whatever_their_times() -> None:
    one = [folder(b"d"), file(b"d/x", b"1", mtime=5), symlink(b"l", b"d/x")]
    other = [folder(b"d"), file(b"d/x", b"1", mtime=9), symlink(b"l", b"d/x")]
    assert compared(one, other) == {}


def test_each_kind_of_difference_is_told() -> None:
    before = [
        folder(b"gone"),
        file(b"gone/x"),
        file(b"content", b"one"),
        file(b"grown", b"1"),
        file(b"mode", b"", 0o644),
        file(b"owner", b"", uid=1),
        symlink(b"link", b"a"),
        file(b"type"),
        file(b"same"),
    ]
    after = [
        file(b"content", b"two"),
        file(b"grown", b"12"),
        file(b"mode", b"", 0o4755),
        file(b"owner", b"", uid=2, gid=3),
        symlink(b"link", b"b"),
        folder(b"type", 0o644),
        file(b"type/inside"),
        file(b"same"),
        file(b"new"),
    ]
    assert compared(before, after) == {
        "/content": ["content"],
        "/gone": "-",
        "/gone/x": "-",
        "/grown": ["size", "content"],
        "/link": ["link"],
        "/mode": ["mode"],
        "/new": "+",
        "/owner": ["owner"],
        "/type": ["type"],
        "/type/inside": "+",
    }


def test_names_that_sort_around_a_slash_are_compared_with_their_own() -> None:
    before = [folder(b"a"), file(b"a/b"), file(b"a-b"), file(b"a.b"), file(b"a0")]
    assert compared(before, before) == {}
    assert compared(before, [each for each in before if each.entry.path != b"a-b"]) == {"/a-b": "-"}


def test_values_are_those_of_both_sides() -> None:
    before, after = [file(b"x", b"", 0o600, uid=1)], [file(b"x", b"", 0o755, gid=7)]
    (found,) = compared_files(MemoryTree(before), MemoryTree(after))
    assert found.aspects == (Aspect("mode", "0600", "0755"), Aspect("owner", "1:0", "0:7"))


def test_content_without_a_known_digest_is_read() -> None:
    def unknown(content: bytes) -> MemoryTree:
        new = file(b"x", content)
        return MemoryTree([NewEntry(replace(new.entry, digest=None), new.content)])

    assert list(compared_files(unknown(b"one"), unknown(b"one"))) == []
    (found,) = compared_files(unknown(b"one"), unknown(b"two"))
    assert [aspect.name for aspect in found.aspects] == ["content"]


def test_settings_are_compared_one_by_one() -> None:
    before = ImageConfig(
        LINUX, env=(("A", "1"), ("B", "2")), cmd=("sh",), labels={"l": "x"}, created="2020-01-01"
    )
    after = ImageConfig(
        LINUX, env=(("A", "1"), ("B", "3")), cmd=("sh", "-c"), volumes=frozenset({"/v"})
    )
    assert compared_settings(before, before) == ()
    assert compared_settings(before, after) == (
        SettingDifference("Cmd", '["sh"]', '["sh", "-c"]'),
        SettingDifference("Env.B", "2", "3"),
        SettingDifference("Labels.l", "x", None),
        SettingDifference("Volumes./v", None, "set"),
    )


def test_a_backend_that_keeps_no_images_itself_is_refused() -> None:
    with pytest.raises(UnsupportedByBackend, match='pybuild diff is not for the backend "memory"'):
        image_difference(memory_backend(), "a", "b")


@pytest.mark.parametrize("words", [[], ["a"], ["a", "b", "c"], ["a", "b", "--format", "xml"]])
def test_two_images_are_wanted(words: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_diff_arguments(words, "1")
