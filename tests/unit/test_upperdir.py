from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import pytest

from pybuild.errors import BackendFailed, CopyFailed
from pybuild.files.trees import MemoryTree, NewEntry
from pybuild.files.upperdir import OverlayNotPlain, upper_entries
from pybuild.oci.compression import Compression
from pybuild.oci.descriptor import digest_of
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layerwriter import write_layer

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="whiteouts are made by root"
)

PARENT = MemoryTree(
    [
        NewEntry(Entry(b"etc", Kind.DIRECTORY, 0o755)),
        NewEntry(
            Entry(b"etc/conf", Kind.FILE, 0o644, size=4, mtime=1000, digest=digest_of(b"conf"))
        ),
        NewEntry(Entry(b"etc/old", Kind.FILE)),
        NewEntry(Entry(b"srv", Kind.DIRECTORY, 0o755)),
        NewEntry(Entry(b"srv/data", Kind.FILE)),
    ]
)


def found(upper: Path, drop: frozenset[bytes] = frozenset()) -> dict[tuple[bytes, Kind], NewEntry]:
    return {(n.entry.path, n.entry.kind): n for n in upper_entries(upper, PARENT, drop)}


def names(upper: Path, *drop: bytes) -> list[str]:
    entries = upper_entries(upper, PARENT, frozenset(drop))
    return [f"{n.entry.kind.value} {n.entry.path.decode()}" for n in entries]


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    top = tmp_path / "upper"
    top.mkdir()
    return top


def make(path: Path, content: bytes = b"", mode: int = 0o644, mtime: int = 2000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    os.utime(path, (mtime, mtime))
    return path


def test_new_files_come_without_the_folders_that_only_got_a_new_time(upper: Path) -> None:
    make(upper / "etc/new", b"new", 0o4750)
    entries = found(upper)
    assert set(entries) == {(b"etc/new", Kind.FILE)}
    new = entries[b"etc/new", Kind.FILE]
    assert (new.entry.mode, new.entry.size, new.entry.mtime) == (0o4750, 3, 2000)
    assert new.content is not None
    with new.content() as stream:
        assert stream.read() == b"new"


def test_new_and_changed_folders_are_kept(upper: Path) -> None:
    (upper / "etc").mkdir(mode=0o700)
    make(upper / "opt/x/y")
    assert names(upper) == ["dir etc", "dir opt", "dir opt/x", "file opt/x/y"]


def test_whiteouts_remove_what_is_there_and_vanish_otherwise(upper: Path) -> None:
    (upper / "etc").mkdir()
    os.mknod(upper / "etc/old", 0o020000, os.makedev(0, 0))
    os.mknod(upper / "etc/never", 0o020000, os.makedev(0, 0))
    os.mknod(upper / "etc/device", 0o020600, os.makedev(1, 3))
    assert names(upper) == ["char etc/device", "whiteout etc/old"]


@pytest.mark.parametrize("prefix", ["trusted", "user"])
def test_an_opaque_folder_is_marked_and_listed(upper: Path, prefix: str) -> None:
    for name in ("srv", "fresh"):
        (upper / name).mkdir()
        set_xattr(upper / name, f"{prefix}.overlay.opaque", b"y")
    make(upper / "srv/only")
    assert names(upper) == ["dir fresh", "opaque srv", "dir srv", "file srv/only"]


def set_xattr(path: Path, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        pytest.skip(f"no {name} here: {error}")


def test_the_overlays_own_attributes_are_left_out(upper: Path) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    path = make(upper / "tool")
    set_xattr(path, "trusted.overlay.origin", b"x")
    set_xattr(path, "security.capability", capability)
    set_xattr(path, "user.mime", b"text")
    entry = found(upper)[b"tool", Kind.FILE].entry
    assert entry.xattrs == (("security.capability", capability), ("user.mime", b"text"))


@pytest.mark.parametrize("name", ["trusted.overlay.redirect", "user.overlay.metacopy"])
def test_an_upper_folder_that_points_below_is_refused_at_once(upper: Path, name: str) -> None:
    (upper / "d").mkdir()
    set_xattr(upper / "d", name, b"/x")
    with pytest.raises(OverlayNotPlain, match=name):
        upper_entries(upper, PARENT)


def test_a_file_copied_up_without_a_change_is_left_out(upper: Path) -> None:
    make(upper / "etc/conf", b"conf", mtime=1000)
    assert names(upper) == []
    make(upper / "etc/conf", b"c0nf", mtime=1000)
    assert names(upper) == ["file etc/conf"]


def test_hard_links_are_kept(upper: Path) -> None:
    make(upper / "z", b"same")
    os.link(upper / "z", upper / "a")
    entries = list(upper_entries(upper, PARENT))
    out = io.BytesIO()
    index = write_layer(entries, out.write, Compression.NONE).index
    assert [(e.path, e.link) for e in index] == [(b"a", b""), (b"z", b"a")]


def test_stubs_are_dropped_unless_something_is_in_them(upper: Path) -> None:
    make(upper / "etc/hosts")
    make(upper / "etc/resolv.conf", b"written")
    (upper / "dev").mkdir()
    (upper / "proc/x").mkdir(parents=True)
    dropped = (b"etc/hosts", b"etc/resolv.conf", b"dev", b"proc")
    assert names(upper, *dropped) == ["file etc/resolv.conf", "dir proc", "dir proc/x"]


def test_links_and_pipes_are_taken_as_they_are_and_sockets_left(
    upper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (upper / "link").symlink_to("/etc/passwd")
    (upper / "dirlink").symlink_to("/etc")
    os.mkfifo(upper / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(upper)
        listening.bind("sock")
        entries = found(upper)
    assert [(path, kind.value) for path, kind in entries] == [
        (b"dirlink", "symlink"),
        (b"link", "symlink"),
        (b"pipe", "fifo"),
    ]
    assert entries[b"link", Kind.SYMLINK].entry.link == b"/etc/passwd"


def test_a_missing_folder_is_an_error_of_the_backend(upper: Path) -> None:
    with pytest.raises(BackendFailed, match="can't read what the step changed"):
        upper_entries(upper / "none", PARENT)


def test_owners_that_mean_nothing_are_those_below_or_roots(upper: Path) -> None:
    for name in ("etc/conf", "new"):
        os.chown(make(upper / name, b"changed"), 7, 8)
    entries = {n.entry.path: n.entry for n in upper_entries(upper, PARENT, owners=False)}
    assert {path: (e.uid, e.gid) for path, e in entries.items()} == {
        b"etc/conf": (0, 0),
        b"new": (0, 0),
    }
    owned = MemoryTree([NewEntry(Entry(b"new", Kind.FILE, uid=3, gid=4))])
    entries = {n.entry.path: n.entry for n in upper_entries(upper, owned, owners=False)}
    assert (entries[b"new"].uid, entries[b"new"].gid) == (3, 4)


def test_names_are_marks_only_where_fuse_overlayfs_made_them(upper: Path) -> None:
    for name in (".wh.none", "etc/.wh.old", "srv/.wh..wh..opq", "srv/.wh..opq", "new/.wh..wh..opq"):
        make(upper / name)
    make(upper / "srv/kept", b"x")
    found = [
        f"{n.entry.kind.value} {n.entry.path.decode()}"
        for n in upper_entries(upper, PARENT, fuse=True)
    ]
    assert found == ["whiteout etc/old", "dir new", "opaque srv", "dir srv", "file srv/kept"]
    assert "file etc/.wh.old" in names(upper)


def test_the_status_of_all_that_is_there_is_told(upper: Path) -> None:
    make(upper / "etc/conf", b"conf")
    make(upper / "new", b"12345")
    told: list[int] = []
    list(upper_entries(upper, PARENT, on_status=lambda status: told.append(status.st_size)))
    assert {4, 5} <= set(told)
    assert len(told) == 3


def test_a_path_that_no_image_can_hold_is_refused(upper: Path) -> None:
    here = os.open(upper, os.O_RDONLY)
    for _ in range(21):
        os.mkdir("n" * 200, dir_fd=here)
        inner = os.open("n" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    with pytest.raises(CopyFailed, match="more than 4096 bytes"):
        upper_entries(upper, PARENT)


def test_what_was_made_anew_counts_even_if_it_is_as_it_was(upper: Path) -> None:
    """Removing a folder and unpacking an archive over it gives the same files and times."""
    parent = MemoryTree(
        [
            NewEntry(Entry(b"app", Kind.DIRECTORY, 0o755)),
            NewEntry(Entry(b"app/inner", Kind.DIRECTORY, 0o755)),
            NewEntry(
                Entry(b"app/inner/f", Kind.FILE, 0o644, 0, 0, 4, 1000, digest=digest_of(b"conf"))
            ),
            NewEntry(Entry(b"app/inner/old", Kind.FILE)),
        ]
    )
    make(upper / "app/inner/f", b"conf", mtime=1000)
    os.mknod(upper / "app/inner/old", 0o020000)
    entries = [n.entry.path for n in upper_entries(upper, parent)]
    assert entries == [b"app/inner/old"]
    os.setxattr(upper / "app", "trusted.overlay.opaque", b"y")
    found = [(n.entry.kind.value, n.entry.path) for n in upper_entries(upper, parent)]
    assert found == [
        ("opaque", b"app"),
        ("dir", b"app"),
        ("dir", b"app/inner"),
        ("file", b"app/inner/f"),
    ]
