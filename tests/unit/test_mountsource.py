from __future__ import annotations

from dataclasses import replace

from pybuild.files.mountsource import copied
from pybuild.files.trees import MemoryTree, NewEntry
from pybuild.testkit.workbench import file, folder, hard_link


def moved(*entries: NewEntry, path: bytes = b"") -> dict[bytes, bytes]:
    """Where the copy of each file gets its content from, by its path."""
    found = copied(MemoryTree(entries), path, "/t")
    return {
        each.entry.path: each.entry.link for each in found if not each.entry.path.endswith(b"m")
    }


def test_names_of_one_file_stay_names_of_one_file() -> None:
    program = file(b"bin/a", b"program")
    names = [hard_link(b"bin/b", program), hard_link(b"bin/c", program)]
    assert moved(folder(b"bin"), program, *names, path=b"bin") == {
        b"m/a": b"",
        b"m/b": b"m/a",
        b"m/c": b"m/a",
    }


def test_a_name_whose_file_lies_outside_of_the_source_has_the_content() -> None:
    program = file(b"lib/a", b"program")
    names = [folder(b"bin"), hard_link(b"bin/b", program), hard_link(b"bin/c", program)]
    found = moved(folder(b"lib"), program, *names, path=b"bin")
    assert found == {b"m/b": b"", b"m/c": b"m/b"}


def test_equal_files_stay_two() -> None:
    one = file(b"a", b"same")
    other = NewEntry(replace(one.entry, path=b"b"), one.content)
    assert moved(one, other) == {b"m/a": b"", b"m/b": b""}
