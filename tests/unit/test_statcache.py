from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from editing import edit, same_size, same_size_and_time, wait_for_the_clock
from pybuild.files import statcache
from pybuild.files.context import ContextTree, open_context_directory
from pybuild.files.ignore import IgnoreMatcher
from pybuild.files.statcache import KnownFile, StatCache
from pybuild.files.trees import walk
from pybuild.run.digests import digested

OLD = time.time() - 3600
"""What is older than the two seconds in which nothing is believed. The ctime can't be set."""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "inner").mkdir(parents=True)
    (folder / "one").write_bytes(b"first")
    (folder / "inner" / "two").write_bytes(b"second")
    return folder


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


@pytest.fixture
def aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two seconds have passed, for files that were just made."""
    monkeypatch.setattr(statcache, "_GRANULARITY", -3600 * 10**9)


def build(
    folder: Path, notes: Path, ignore: IgnoreMatcher | None = None
) -> dict[bytes, str | None]:
    """The digests that a build sees, and keeps."""
    with open_context_directory(folder, ignore) as tree:
        tree.keep_digests_in(notes)
        return {entry.path: entry.digest for entry in digested(tree, b"")}


def known(folder: Path, notes: Path) -> set[bytes]:
    """The files that needn't be read."""
    with open_context_directory(folder) as tree:
        tree.keep_digests_in(notes)
        return {entry.path for entry in walk(tree, b"") if entry.digest is not None}


def digest(content: bytes) -> str:
    return f"sha256:{sha256(content).hexdigest()}"


@pytest.mark.usefixtures("aged")
def test_unchanged_files_are_not_opened_again(
    context: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(context, notes)
    assert first[b"one"] == digest(b"first")

    def refuse(*_: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr("pybuild.files.safepath.Root._open_regular", refuse)
    assert build(context, notes) == first


@pytest.mark.usefixtures("aged")
def test_files_that_were_listed_before_are_known_as_well(context: Path, notes: Path) -> None:
    build(context, notes)
    with open_context_directory(context) as tree:
        assert tree.get(b"one") is not None
        tree.keep_digests_in(notes)
        entry = tree.get(b"one")
    assert entry is not None
    assert entry.digest == digest(b"first")


def test_a_file_changed_less_than_two_seconds_before_is_not_believed(
    context: Path, notes: Path
) -> None:
    os.utime(context / "one", (OLD, OLD))  # which makes its ctime now
    build(context, notes)
    assert known(context, notes) == set()


def test_what_was_changed_two_seconds_before_the_look_is_kept(context: Path, notes: Path) -> None:
    status = (context / "one").lstat()
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    for since, kept in ((2 * 10**9, False), (2 * 10**9 + 1, True)):
        cache = StatCache(notes, context.lstat(), changed + since)
        cache.record(status, is_plain=True, digest=digest(b"first"))
        cache.save()
        again = StatCache(notes, context.lstat(), changed)
        file = KnownFile(digest(b"first"), is_plain=True)
        assert again.find(status) == (file if kept else None)


def another_inode_with_the_same_time(path: Path) -> None:
    status = path.lstat()
    new = path.with_name("new")
    new.write_bytes(path.read_bytes()[::-1])
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(path)


def exchanged_for_a_file_of_the_context(path: Path) -> None:
    other = path.parent / "inner" / "two"
    other.replace(path)
    other.write_bytes(b"third")


def through_a_hard_link(path: Path) -> None:
    other = path.parent.parent / "other"
    os.link(path, other)
    same_size_and_time(other)
    other.unlink()


@pytest.mark.usefixtures("aged")
@pytest.mark.parametrize(
    "change",
    [
        same_size,
        same_size_and_time,
        another_inode_with_the_same_time,
        exchanged_for_a_file_of_the_context,
        through_a_hard_link,
    ],
)
def test_no_change_is_missed(context: Path, notes: Path, change: Callable[[Path], None]) -> None:
    build(context, notes)
    wait_for_the_clock(context)
    change(context / "one")
    for _ in range(2):
        found = build(context, notes)
        for name in (b"one", b"inner/two"):
            assert found[name] == digest((context / os.fsdecode(name)).read_bytes())


@pytest.mark.usefixtures("aged")
def test_a_file_changed_between_look_and_reading_is_read_again_by_the_next_build(
    context: Path, notes: Path
) -> None:
    with open_context_directory(context) as tree:
        tree.keep_digests_in(notes)
        tree.children(b"")
        wait_for_the_clock(context)
        same_size_and_time(context / "one")  # what the reader can't notice
        list(digested(tree, b""))
        wait_for_the_clock(context)
        same_size_and_time(context / "one")
    assert build(context, notes)[b"one"] == digest(b"first")


@pytest.mark.usefixtures("aged")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["write", "move", "drop", "put back"]))
    )
)
def test_builds_see_what_is_there_whatever_was_done(
    tmp_path: Path, edits: list[tuple[str, str]]
) -> None:
    folder, notes = tmp_path / "edited", tmp_path / "notes"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for count, (name, how) in enumerate(edits):
        edit(folder / name, how, count, folder / "d")
        found = build(folder, notes)
        here = {os.fsencode(p.name): digest(p.read_bytes()) for p in folder.iterdir()}
        assert {p: d for p, d in found.items() if p} == here


@pytest.mark.usefixtures("aged")
def test_what_one_build_excludes_stays_known_to_the_next(context: Path, notes: Path) -> None:
    build(context, notes)
    (context / "three").write_bytes(b"third")
    assert b"inner/two" not in build(context, notes, IgnoreMatcher(["inner"]))
    assert known(context, notes) == {b"one", b"inner/two", b"three"}


@pytest.mark.usefixtures("aged")
@pytest.mark.parametrize("damage", [b"", b"x", b"pybuild stat cache 1\n", None])
def test_what_is_damaged_counts_as_nothing(
    context: Path, notes: Path, damage: bytes | None
) -> None:
    first = build(context, notes)
    (path,) = notes.iterdir()
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]) if damage is None else damage)
    assert known(context, notes) == set()
    assert build(context, notes) == first


@pytest.mark.usefixtures("aged")
def test_a_build_goes_on_where_nothing_can_be_kept(context: Path, notes: Path) -> None:
    notes.write_bytes(b"in the way")
    assert build(context, notes)[b"one"] == digest(b"first")


@pytest.mark.usefixtures("aged")
def test_neither_contexts_nor_their_files_pile_up(
    context: Path, tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statcache, "_MOST_FILES", 2)
    monkeypatch.setattr(statcache, "_MOST_ROWS", 2)
    for number in range(4):
        other = tmp_path / f"other-{number}"
        other.mkdir()
        (other / "file").write_bytes(b"content")
        build(other, notes)
    assert len(list(notes.iterdir())) == 2
    build(context, notes)
    same_size(context / "one")
    build(context, notes)
    assert known(context, notes) == {b"one", b"inner/two"}


@pytest.mark.usefixtures("aged")
def test_a_hard_link_has_the_digest_of_neither_more_nor_less_than_before(
    context: Path, notes: Path
) -> None:
    os.link(context / "one", context / "zlink")
    assert build(context, notes) == build(context, notes)


def test_an_archive_keeps_nothing(notes: Path) -> None:
    class Archive(ContextTree):
        def close(self) -> None: ...
        def get(self, path: bytes) -> None: ...
        def children(self, path: bytes) -> tuple[bytes, ...]:
            return ()

        def open(self, path: bytes) -> None: ...  # type: ignore[override]

    Archive().keep_digests_in(notes)
    assert not notes.exists()


@pytest.mark.usefixtures("aged")
@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="no extended attributes here")
def test_extended_attributes_of_known_files_are_seen(context: Path, notes: Path) -> None:
    def attributes() -> dict[bytes, tuple[tuple[str, bytes], ...]]:
        with open_context_directory(context) as tree:
            tree.keep_digests_in(notes)
            return {entry.path: entry.xattrs for entry in digested(tree, b"") if entry.xattrs}

    try:
        os.setxattr(context / "one", "user.kept", b"before")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    before = {b"one": (("user.kept", b"before"),)}
    assert attributes() == before
    assert attributes() == before
    assert known(context, notes) == {b"one", b"inner/two"}
    os.setxattr(context / "inner" / "two", "user.kept", b"later")
    assert attributes() == before | {b"inner/two": (("user.kept", b"later"),)}


def test_a_folder_is_listed_with_the_entries_that_are_found_one_by_one(context: Path) -> None:
    for ignore in (None, IgnoreMatcher(["one"])):
        with open_context_directory(context, ignore) as tree:
            listed = list(tree.listed(b""))
            assert [name for name, _ in listed] == list(tree.children(b""))
            assert all(tree.get(name) == entry for name, entry in listed)
