from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from descriptors import open_below
from pybuild.errors import ContextError
from pybuild.files.safepath import Root
from pybuild.files.xattrs import load_has_none

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX links")


@pytest.fixture(params=["openat2", "components"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Root]:
    top = tmp_path / "root"
    (top / "d").mkdir(parents=True)
    (top / "d" / "f").write_bytes(b"content")
    (top / "in").symlink_to("d")
    (top / "out").symlink_to("/etc")
    (top / "d" / "flink").symlink_to("f")
    os.mkfifo(top / "d" / "pipe")
    with Root(top) as opened:
        if request.param == "components":
            opened._has_openat2 = False
        yield opened


def test_files_and_folders_are_read(root: Root) -> None:
    with root.open_file(b"d/f") as stream:
        assert stream.read() == b"content"
    listed = {item.name: item for item in root.listed(b"d")}
    assert set(listed) == {b"f", b"flink", b"pipe"}
    assert listed[b"flink"].target == b"f"
    assert listed[b"f"].status.st_size == 7
    assert {item.name for item in root.listed(b"")} == {b"d", b"in", b"out"}


@pytest.mark.parametrize("path", [b"in/f", b"out/passwd", b"d/flink", b"in"])
def test_no_link_is_followed(root: Root, path: bytes) -> None:
    with pytest.raises(OSError) as caught:
        root.open_file(path)
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    with pytest.raises(OSError):
        root.listed(path)


@pytest.mark.parametrize("path", [b"../root/d/f", b"d/../d/f", b"/etc/passwd", b"d//f", b"d/f\0"])
def test_paths_that_are_not_plain_are_refused(root: Root, path: bytes) -> None:
    with pytest.raises((OSError, ValueError)):
        root.open_file(path)


@pytest.mark.parametrize("path", [b"d/pipe", b"d"])
def test_what_is_no_regular_file_is_refused_at_once(root: Root, path: bytes) -> None:
    with pytest.raises(ContextError, match="not a regular file"):
        root.open_file(path)


def test_a_file_that_was_replaced_since_is_refused(root: Root, tmp_path: Path) -> None:
    expected = (tmp_path / "root/d/f").lstat()
    root.open_file(b"d/f", expected).close()
    (tmp_path / "other").write_bytes(b"CONTENT")
    (tmp_path / "other").rename(tmp_path / "root/d/f")
    with pytest.raises(ContextError, match="d/f changed"):
        root.open_file(b"d/f", expected)


@pytest.mark.parametrize("size", [0, 3, 100])
def test_a_file_that_changes_size_while_read_is_refused(
    root: Root, tmp_path: Path, size: int
) -> None:
    with root.open_file(b"d/f") as stream:
        os.truncate(tmp_path / "root/d/f", size)
        with pytest.raises(ContextError, match="changed while it was read"):
            stream.read()


def test_paths_longer_than_the_system_allows_are_reached(root: Root, tmp_path: Path) -> None:
    here = os.open(tmp_path / "root", os.O_RDONLY)
    name = "n" * 100
    for _ in range(60):
        os.mkdir(name, dir_fd=here)
        there = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(os.open("end", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    deep = b"/".join([name.encode()] * 60)
    assert [item.name for item in root.listed(deep)] == [b"end"]
    root.open_file(deep + b"/end").close()


@pytest.mark.skipif(sys.platform != "linux", reason="inherent: asks /proc")
def test_no_descriptor_is_left_open(root: Root, tmp_path: Path) -> None:
    for path in (b"d/f", b"d/none", b"in/f", b"d/f/x", b"d"):
        with suppress(OSError, ContextError):
            root.open_file(path).close()
        with suppress(OSError):
            root.listed(path)
        # the root, and the folder of the last file may be
        assert len(open_below(tmp_path)) in (1, 2)
    root.close()
    assert open_below(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="no extended attributes here")
@pytest.mark.parametrize("has_call", [True, False], ids=["listxattrat", "proc"])
def test_attributes_of_many_files_are_those_of_each(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_call: bool
) -> None:
    monkeypatch.setattr("pybuild.files.safepath._MANY", 1)
    if not has_call:
        monkeypatch.setattr("pybuild.files.xattrs.load_has_none", lambda: None)
    folder = tmp_path / "root" / "d"
    (folder / "other").write_bytes(b"")
    try:
        os.setxattr(folder / "other", "user.kept", b"value")
        os.setxattr(folder, "user.own", b"more")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    found = {item.name: item.xattrs for item in root.listed(b"d")}
    # a link has none of its target's
    (folder / "flink").unlink()
    (folder / "flink").symlink_to("other")
    assert found == {item.name: item.xattrs for item in root.listed(b"d")}
    assert {name for name, xattrs in found.items() if xattrs} == {b"other"}
    assert found[b"other"] == (("user.kept", b"value"),)
    assert root.status(b"d").xattrs == (("user.own", b"more"),)


def test_a_call_that_the_kernel_lacks_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pybuild.files.xattrs._SYS_LISTXATTRAT", 100_000)
    assert load_has_none() is None
