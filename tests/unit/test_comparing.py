from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pybuild.errors import BackendFailed, CopyFailed
from pybuild.files.comparing import (
    Record,
    compared_entries,
    next_tick,
    record,
    record_from_bytes,
    record_to_bytes,
)
from pybuild.files.layertree import LayerTree
from pybuild.files.upperdir import upper_entries
from pybuild.oci.compression import Compression
from pybuild.oci.layerindex import LayerIndex
from pybuild.oci.layerwriter import write_layer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: for Linux's workers")

OLD = 1000


class Compared:
    """A folder, what it showed when it was recorded, and what changed since."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, content in (("d/f", b"f"), ("d/g", b"g"), ("e/f", b"F"), ("top", b"top")):
            (folder / name).parent.mkdir(exist_ok=True)
            make(folder / name, content)
        (folder / "d/inner").mkdir()
        (folder / "link").symlink_to("top")
        self.indexes: list[LayerIndex] = []
        self.before: Record = {}
        self.indexes.append(self.layer())
        self.record()

    def tree(self) -> LayerTree:
        def refuse(*_: object) -> None:
            raise AssertionError("nothing is opened below")

        return LayerTree(self.indexes, refuse)  # type: ignore[arg-type]

    def record(self) -> None:
        """Record the folder, and see that the record can be written down."""
        marker = self.folder.with_name("marker")
        with marker.open("w") as file:
            found = record(self.folder)
            next_tick(file.fileno())
        marker.unlink()
        self.before = record_from_bytes(record_to_bytes(found))
        assert self.before == found

    def layer(self, newest: int | None = None) -> LayerIndex:
        """What changed, as a layer."""
        entries = compared_entries(
            self.folder, self.before, self.tree(), newest=newest, owners=False
        )
        return write_layer(entries, lambda _: None, Compression.NONE).index

    def changed(self, newest: int | None = None) -> list[str]:
        return [f"{e.kind.value} {e.path.decode()}" for e in self.layer(newest)]

    def go_on(self) -> None:
        """What changed becomes what was there."""
        self.indexes.append(self.layer())
        self.record()


def make(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o644)
    os.utime(path, (OLD, OLD))


@pytest.fixture
def compared(tmp_path: Path) -> Compared:
    (tmp_path / "root").mkdir()
    return Compared(tmp_path / "root")


def test_nothing_changed_is_no_entry(compared: Compared) -> None:
    assert compared.changed() == []


def test_content_of_the_same_size_and_time_is_a_change(compared: Compared) -> None:
    make(compared.folder / "d/f", b"x")
    assert compared.changed() == ["file d/f"]


def test_modes_times_links_and_new_files_are_changes_and_times_of_folders_are_none(
    compared: Compared,
) -> None:
    (compared.folder / "d/f").chmod(0o600)
    os.utime(compared.folder / "d/g", (1, 1))
    os.utime(compared.folder / "e", (1, 1))
    (compared.folder / "link").unlink()
    (compared.folder / "link").symlink_to("d")
    (compared.folder / "d/inner").chmod(0o711)
    (compared.folder / "new/er").mkdir(parents=True)
    assert compared.changed() == [
        "file d/f",
        "file d/g",
        "dir d/inner",
        "symlink link",
        "dir new",
        "dir new/er",
    ]


def test_what_is_touched_but_the_same_is_no_change(compared: Compared) -> None:
    (compared.folder / "d/f").chmod(0o600)
    (compared.folder / "d/f").chmod(0o644)
    make(compared.folder / "top", b"top")
    (compared.folder / "d/inner").chmod(0o700)
    (compared.folder / "d/inner").chmod(0o755)
    assert compared.changed() == []


def test_removals_are_told_once_and_at_the_top(compared: Compared) -> None:
    shutil.rmtree(compared.folder / "d")
    (compared.folder / "e/f").unlink()
    assert compared.changed() == ["whiteout d", "whiteout e/f"]


def test_a_folder_made_anew_hides_what_was_in_it_though_its_inode_may_be_the_same(
    compared: Compared,
) -> None:
    shutil.rmtree(compared.folder / "d")
    (compared.folder / "d/inner").mkdir(parents=True)
    make(compared.folder / "d/f", b"f")
    assert compared.changed() == ["dir d", "opaque d", "file d/f", "dir d/inner"]


def test_folders_that_changed_places_are_read_anew(compared: Compared) -> None:
    place = compared.folder
    make(place / "e/g", b"G")
    (place / "e/inner").mkdir()
    compared.go_on()
    (place / "d").rename(place / "x")
    (place / "e").rename(place / "d")
    (place / "x").rename(place / "e")
    both = [f"{kind} {name}" for name in "de" for kind in ("dir", "opaque")]
    assert [each for each in compared.changed() if "/" not in each] == both
    assert [each for each in compared.changed() if each.startswith("file")] == [
        *("file d/f", "file d/g", "file e/f", "file e/g"),
    ]


def test_files_and_folders_take_each_others_places(compared: Compared) -> None:
    shutil.rmtree(compared.folder / "d")
    make(compared.folder / "d", b"d")
    (compared.folder / "top").unlink()
    (compared.folder / "top").mkdir()
    assert compared.changed() == ["file d", "dir top"]


def test_what_no_layer_can_hold_is_left_out_and_stays_out(compared: Compared) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        try:
            os.chdir(compared.folder)
            listening.bind("socket")
        finally:
            os.chdir(here)
    (compared.folder / "point").mkdir()
    assert compared.changed() == ["dir point"]
    compared.record()  # with both of them
    assert compared.changed() == []
    (compared.folder / "socket").unlink()
    (compared.folder / "point").rmdir()
    assert compared.changed() == []


@pytest.mark.root
def test_a_device_that_overlays_take_for_a_removal_is_one(compared: Compared) -> None:
    (compared.folder / "top").unlink()
    for name in ("top", "none"):
        os.mknod(compared.folder / name, 0o020000, os.makedev(0, 0))
    assert compared.changed() == ["whiteout top"]


def test_a_mount_point_that_something_was_put_into_is_kept(compared: Compared) -> None:
    (compared.folder / "point/inner").mkdir(parents=True)
    compared.record()
    make(compared.folder / "point/f", b"")
    assert compared.changed() == ["dir point", "file point/f"]


def test_a_file_with_several_names_changes_with_all_of_them(compared: Compared) -> None:
    place = compared.folder
    (place / "d/z").hardlink_to(place / "top")
    (place / "a").hardlink_to(place / "top")
    links = {entry.path: entry.link for entry in compared.layer()}
    assert links == {b"a": b"", b"d/z": b"a", b"top": b"a"}
    compared.go_on()
    (place / "d/z").unlink()
    assert compared.changed() == ["whiteout d/z"]
    (place / "a").chmod(0o755)
    assert {entry.path: entry.mode for entry in compared.layer()} == {
        b"a": 0o755,
        b"d/z": 0,
        b"top": 0o755,
    }


def test_a_name_that_becomes_a_file_of_its_own_is_no_change_if_it_is_the_same(
    compared: Compared,
) -> None:
    (compared.folder / "a").hardlink_to(compared.folder / "top")
    compared.go_on()
    (compared.folder / "a").unlink()
    make(compared.folder / "a", b"top")
    assert compared.changed() == []


def test_times_after_the_newest_become_it(compared: Compared) -> None:
    make(compared.folder / "new", b"")
    os.utime(compared.folder / "new", (OLD + 9, OLD + 9))
    [entry] = compared.layer(newest=OLD + 5)
    assert entry.mtime == OLD + 5
    make(compared.folder / "top", b"TOP")
    os.utime(compared.folder / "top", (OLD + 9, OLD + 9))
    assert "file top" in compared.changed(newest=OLD)


@pytest.mark.root
def test_owners_count_where_they_are_kept(compared: Compared) -> None:
    os.chown(compared.folder / "top", 7, 8)
    assert compared.changed() == []
    kept = compared_entries(compared.folder, compared.before, compared.tree())
    assert [(new.entry.path, new.entry.uid, new.entry.gid) for new in kept] == [(b"top", 7, 8)]


def test_a_path_too_long_for_any_layer_is_refused(compared: Compared) -> None:
    here = os.open(compared.folder, os.O_RDONLY)
    for _ in range(18):
        os.mkdir("n" * 250, dir_fd=here)
        inner = os.open("n" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    with pytest.raises(CopyFailed, match="4096 bytes"):
        compared.changed()
    shutil.rmtree(compared.folder / ("n" * 250))


def test_a_missing_folder_is_an_error_of_the_backend(compared: Compared) -> None:
    with pytest.raises(BackendFailed, match="can't read what the step changed"):
        compared_entries(compared.folder / "none", compared.before, compared.tree())


def _edited(top: Path) -> None:
    (top / "d").mkdir(exist_ok=True)
    make(top / "d/new", b"n")
    (top / "d").chmod(0o700)


def _replaced(top: Path) -> None:
    (top / "top").unlink(missing_ok=True)
    (top / "top").symlink_to("d/f")


@pytest.mark.parametrize("change", [_edited, _replaced])
def test_the_layer_is_the_one_that_an_overlay_gives(
    compared: Compared, tmp_path_factory: pytest.TempPathFactory, change: Callable[[Path], None]
) -> None:
    change(compared.folder)
    upper = tmp_path_factory.mktemp("upper")
    change(upper)
    theirs = write_layer(
        upper_entries(upper, compared.tree(), newest=0, owners=False), lambda _: None
    )
    ours = write_layer(
        compared_entries(compared.folder, compared.before, compared.tree(), newest=0, owners=False),
        lambda _: None,
    )
    assert ours.diff == theirs.diff
