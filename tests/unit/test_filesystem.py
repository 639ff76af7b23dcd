"""Reading files of images as `pathlib` and `os` read those of a machine."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pytest

from pybuild.errors import UsageError
from pybuild.files.filesystem import FileSystem
from pybuild.files.trees import MemoryTree, NewEntry, Tree
from pybuild.oci.layerindex import Entry, Kind
from pybuild.testkit.workbench import file, folder, symlink

ENTRIES = [
    folder(b"etc", 0o750),
    file(b"etc/hosts", b"here\n", 0o640),
    symlink(b"etc/absolute", b"/etc/hosts"),
    symlink(b"etc/out", b"../../../../etc/hosts"),
    symlink(b"etc/loop", b"loop"),
    symlink(b"etc/dangling", b"nowhere"),
    symlink(b"config", b"etc"),
    folder(b"srv"),
    folder(b"srv/a"),
    file(b"srv/a/deep", b"d"),
    file(b"srv/name-\xff", b"odd"),
    file(b"srv/z", b"z" * 1000),
    NewEntry(Entry(b"srv/pipe", Kind.FIFO, 0o600)),
]


def reading(tree: Tree) -> FileSystem:
    @contextmanager
    def use() -> Iterator[Tree]:
        yield tree

    return FileSystem(use)


@pytest.fixture
def fs() -> FileSystem:
    return reading(MemoryTree(ENTRIES))


@pytest.mark.parametrize("path", ["/etc/hosts", "etc/hosts", "//etc/./x/../hosts", "config/hosts"])
def test_a_file_is_found_by_any_spelling(fs: FileSystem, path: str) -> None:
    assert fs.read_text(path) == "here\n"
    assert fs.read_bytes(PurePosixPath(path)) == b"here\n"


@pytest.mark.parametrize("path", ["/etc/absolute", "/etc/out", "/../../etc/hosts"])
def test_links_never_lead_out_of_the_root(fs: FileSystem, path: str) -> None:
    assert fs.read_text(path) == "here\n"


@pytest.mark.parametrize(
    ("path", "error", "number"),
    [
        ("/nowhere", FileNotFoundError, errno.ENOENT),
        ("/etc/dangling", FileNotFoundError, errno.ENOENT),
        ("/etc/hosts/below", NotADirectoryError, errno.ENOTDIR),
        ("/etc", IsADirectoryError, errno.EISDIR),
        ("/", IsADirectoryError, errno.EISDIR),
        ("/etc/loop", OSError, errno.ELOOP),
        ("/srv/pipe", OSError, errno.EINVAL),
        ("/" + "x" * 5000, OSError, errno.ENAMETOOLONG),
    ],
)
def test_what_pathlib_refuses_is_refused_by_the_same_error(
    fs: FileSystem, path: str, error: type[OSError], number: int
) -> None:
    with pytest.raises(error) as caught:
        fs.read_bytes(path)
    assert (caught.value.errno, caught.value.filename) == (number, path)


def test_a_null_byte_is_no_path(fs: FileSystem) -> None:
    with pytest.raises(ValueError, match="null byte"):
        fs.exists("/etc/\0hosts")


def test_a_folder_is_listed_in_order(fs: FileSystem) -> None:
    assert fs.listdir() == ["config", "etc", "srv"]
    assert fs.listdir("srv") == ["a", os.fsdecode(b"name-\xff"), "pipe", "z"]
    assert fs.listdir("/config") == fs.listdir("/etc")
    with pytest.raises(NotADirectoryError):
        fs.listdir("/etc/hosts")


def test_a_name_that_is_no_text_can_be_used_as_it_is_listed(fs: FileSystem) -> None:
    assert fs.read_bytes("/srv/" + fs.listdir("srv")[1]) == b"odd"


def test_status_has_type_mode_owner_and_size(fs: FileSystem) -> None:
    found = fs.stat("/etc/hosts")
    assert stat.S_ISREG(found.st_mode)
    assert (found.st_mode & 0o7777, found.st_size, found.st_uid) == (0o640, 5, 0)
    assert stat.S_ISDIR(fs.stat("config").st_mode)
    link = fs.stat("config", follow_symlinks=False)
    assert stat.S_ISLNK(link.st_mode)
    assert link.st_size == len("etc")
    assert stat.S_ISFIFO(fs.stat("/srv/pipe").st_mode)
    assert stat.S_ISDIR(fs.stat("/").st_mode)


def test_a_link_is_read(fs: FileSystem) -> None:
    assert fs.readlink("/etc/out") == "../../../../etc/hosts"
    with pytest.raises(OSError, match="Invalid argument"):
        fs.readlink("/etc/hosts")


def test_questions_have_answers_for_whatever_is_there(fs: FileSystem) -> None:
    assert fs.exists("/etc/absolute")
    assert fs.is_file("/etc/absolute")
    assert fs.is_dir("config")
    assert not fs.is_file("config")
    for nothing in ("/x", "/etc/dangling", "/etc/loop", "/etc/hosts/x"):
        assert not fs.exists(nothing)


def test_a_walk_is_that_of_os_walk(fs: FileSystem, tmp_path: Path) -> None:
    (tmp_path / "srv/a").mkdir(parents=True)
    (tmp_path / "srv/a/deep").write_text("d")
    (tmp_path / "srv/z").write_text("z")
    (tmp_path / "link").symlink_to("srv")
    entries = [folder(b"srv"), folder(b"srv/a"), file(b"srv/a/deep", b"d"), file(b"srv/z", b"z")]
    ours = reading(MemoryTree([*entries, symlink(b"link", b"srv")]))
    theirs = [
        (f"/{Path(top).relative_to(tmp_path)}".replace("/.", "/"), sorted(folders), sorted(others))
        for top, folders, others in os.walk(tmp_path)
    ]
    # a link to a folder is a name like others: it isn't gone into
    theirs[0] = ("/", ["srv"], ["link"])
    assert list(ours.walk()) == theirs


def test_a_walk_leaves_out_what_its_caller_does(fs: FileSystem) -> None:
    seen = []
    for top, folders, _ in fs.walk("/"):
        seen.append(top)
        folders[:] = [name for name in folders if name != "srv"]
    assert seen == ["/", "/etc"]
    with pytest.raises(FileNotFoundError):
        list(fs.walk("/nowhere"))


def test_an_empty_root_is_a_folder() -> None:
    fs = reading(MemoryTree([]))
    assert (fs.listdir(), list(fs.walk())) == ([], [("/", [], [])])


def test_what_is_closed_says_so() -> None:
    @contextmanager
    def use() -> Iterator[Tree]:
        raise UsageError("closed")
        yield

    with pytest.raises(UsageError, match="closed"):
        FileSystem(use).exists("/")
