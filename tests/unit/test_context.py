from __future__ import annotations

import gzip
import io
import os
import socket
import sys
import tarfile
from pathlib import Path

import pytest

from pybuild.errors import ContextError
from pybuild.files.context import is_archive, open_context_directory, open_context_tar, read_file
from pybuild.files.ignore import IgnoreMatcher
from pybuild.files.trees import Tree, walk
from pybuild.oci.layerindex import Kind

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX files")


def paths(tree: Tree) -> list[str]:
    return [e.path.decode("utf-8", "surrogateescape") for e in walk(tree, b"") if e.path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "context"
    (top / "d/e").mkdir(parents=True)
    (top / "d/e/f").write_text("f")
    (top / "d/x.txt").write_text("text")
    (top / "a").write_text("A")
    (top / "link").symlink_to("d/x.txt")
    return top


def test_a_folder_is_a_tree_of_its_files(folder: Path) -> None:
    with open_context_directory(folder) as tree:
        assert paths(tree) == ["a", "d", "d/e", "d/e/f", "d/x.txt", "link"]
        assert tree.open(b"d/x.txt").read() == b"text"
        assert tree.get(b"none") is None
        assert tree.get(b"a/x") is None
        assert tree.get(b"link/x") is None
        assert tree.children(b"a") == []
        link = tree.get(b"link")
        assert link is not None
        assert (link.kind, link.link) == (Kind.SYMLINK, b"d/x.txt")


def test_everything_belongs_to_root_and_keeps_mode_and_time(folder: Path) -> None:
    (folder / "a").chmod(0o6755)
    os.utime(folder / "a", ns=(0, 1_500_000_000_999_999_999))
    if os.geteuid() == 0:
        os.chown(folder / "d/x.txt", 5, 6)
    with open_context_directory(folder) as tree:
        entry = tree.get(b"a")
        assert entry is not None
        assert (entry.mode, entry.mtime, entry.size) == (0o6755, 1_500_000_000, 1)
        assert {(e.uid, e.gid) for e in walk(tree, b"")} == {(0, 0)}


def test_hard_links_are_known(folder: Path) -> None:
    os.link(folder / "a", folder / "b")
    os.link(folder / "a", folder / "d/c")
    with open_context_directory(folder) as tree:
        links = [(e.path, e.link) for e in walk(tree, b"") if e.path in (b"a", b"b", b"d/c")]
        assert links == [(b"a", b""), (b"b", b"a"), (b"d/c", b"a")]
        assert tree.open(b"b").read() == b"A"


def test_a_file_is_seen_as_it_was_when_its_folder_was_read(folder: Path) -> None:
    with open_context_directory(folder) as tree:
        assert tree.get(b"a") is not None
        (folder / "a").write_text("longer now")
        (folder / "new").write_text("")
        assert tree.get(b"new") is None
        with pytest.raises(ContextError, match="a changed while the build was using it"):
            tree.open(b"a")
        (folder / "a").unlink()
        with pytest.raises(ContextError, match="a was removed"):
            tree.open(b"a")


def test_odd_files_are_listed_and_never_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(folder)
        listening.bind("sock")
        os.truncate(folder / "a", 2**40)
        with open_context_directory(folder) as tree:
            kinds = {e.path: e.kind for e in walk(tree, b"")}
            assert kinds[b"pipe"] is Kind.FIFO
            assert kinds[b"sock"] is Kind.SOCKET
            big = tree.get(b"a")
            assert big is not None
            assert big.size == 2**40
            with pytest.raises(ContextError, match="pipe is not a regular file"):
                tree.open(b"pipe")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["d"], "a link"),
        (["*"], ""),
        (["*", "!d/e/f"], "d d/e d/e/f"),
        (["d/*", "!d/x.txt"], "a d d/x.txt link"),
        (["**/*.txt"], "a d d/e d/e/f link"),
        (["d", "!d/none"], "a link"),
        (["d/e", "!d/e"], "a d d/e d/e/f d/x.txt link"),
    ],
)
def test_ignored_files_are_not_there(folder: Path, patterns: list[str], expected: str) -> None:
    with open_context_directory(folder, IgnoreMatcher(patterns)) as tree:
        assert paths(tree) == expected.split()
        assert all(tree.get(e.path) for e in walk(tree, b""))
        if "d/x.txt" not in expected:
            with pytest.raises(ContextError):
                tree.open(b"d/x.txt")


def test_an_ignored_folder_is_not_read(folder: Path) -> None:
    secret = folder / "secret"
    secret.mkdir()
    with open_context_directory(folder, IgnoreMatcher(["secret"])) as tree:
        secret.rmdir()
        secret.symlink_to("/")
        assert "secret" not in paths(tree)


def test_names_are_bytes(folder: Path) -> None:
    for name in (b"\xff\xfe", b"new\nline", b"back\\slash", b"n" * 255):
        (folder / os.fsdecode(name)).write_bytes(name)
    with open_context_directory(folder) as tree:
        for name in (b"\xff\xfe", b"new\nline", b"back\\slash", b"n" * 255):
            assert tree.open(name).read() == name


def test_what_is_no_folder_can_not_be_the_context(folder: Path) -> None:
    with pytest.raises(ContextError, match="is not a directory"):
        open_context_directory(folder / "a")
    with pytest.raises(ContextError, match="can't open the build context"):
        open_context_directory(folder / "none")


def packed(folder: Path, mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        tar.add(folder, ".")
    return out.getvalue()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_is_the_same_tree_as_its_folder(folder: Path, mode: str) -> None:
    os.link(folder / "a", folder / "b")
    blob = packed(folder, mode)
    assert is_archive(blob[:512])
    with open_context_tar(io.BytesIO(blob)) as tar, open_context_directory(folder) as tree:
        # which of two hard links has the content is the packer's choice
        listed = [(e.path, e.kind, e.mode, e.uid, e.size, e.mtime) for e in walk(tar, b"")]
        assert listed == [(e.path, e.kind, e.mode, e.uid, e.size, e.mtime) for e in walk(tree, b"")]
        assert tar.open(b"d/x.txt").read() == b"text"
        assert tar.open(b"a").read() == tar.open(b"b").read() == b"A"
        assert paths(tar.ignoring(IgnoreMatcher(["d"]))) == ["a", "b", "link"]


@pytest.mark.parametrize("head", [b"", b"FROM busybox\n", b"#!/bin/sh\n", bytes(512), b"BZ"])
def test_a_dockerfile_is_no_archive(head: bytes) -> None:
    assert not is_archive(head)


def test_text_compressed_by_gzip_is_no_context() -> None:
    blob = gzip.compress(b"FROM busybox\n" * 100)
    with pytest.raises(ContextError, match="no usable tar"):
        open_context_tar(io.BytesIO(blob))


def test_small_files_are_read_behind_links_inside(folder: Path) -> None:
    with open_context_directory(folder) as tree:
        assert read_file(tree, "link") == b"text"
        assert read_file(tree, b"none") is None
        with pytest.raises(ContextError, match="d is not a regular file"):
            read_file(tree, "d")
        with pytest.raises(ContextError, match="larger than 3 bytes"):
            read_file(tree, "d/x.txt", limit=3)
