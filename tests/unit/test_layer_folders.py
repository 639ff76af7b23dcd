"""What a layer's folder must hold, how that is made, and how trees are removed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from pybuild.errors import BackendFailed, InvalidImage
from pybuild.files.layertree import LayerTree
from pybuild.oci.layerindex import Entry, Kind, LayerIndex
from pybuild.unpacking.failures import translated
from pybuild.unpacking.layerplan import LayerPlan, plan_layer
from pybuild.unpacking.making import Making
from pybuild.unpacking.removing import measure, remove

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: runs on Linux only")

DIGEST = "sha256:" + "0" * 64


def unopened(_layer: int, _entry: Entry, _offset: int) -> BinaryIO:
    raise AssertionError("no content is needed")


# --- what a folder holds


def plan(below: Sequence[Entry], layer: Sequence[Entry]) -> LayerPlan:
    files = [e for e in layer if e.kind is Kind.FILE and e.digest]
    offsets = {e.path: number for number, e in enumerate(files)}
    index = LayerIndex(layer, [offsets.get(e.link or e.path, -1) for e in layer])
    lower = LayerTree([LayerIndex(below)], unopened)
    return plan_layer(index, lower.extended(index, unopened), lower)


def folder(path: bytes, **fields: Any) -> Entry:
    return Entry(path, Kind.DIRECTORY, **({"mode": 0o700} | fields))


def file(path: bytes, **fields: Any) -> Entry:
    return Entry(path, Kind.FILE, **({"digest": DIGEST} | fields))


def test_a_folder_that_the_layer_implies_is_that_of_the_layer_below() -> None:
    made = plan([folder(b"a", uid=7), folder(b"a/b")], [file(b"a/b/c/f")])
    assert [(e.path, e.uid, e.mode) for e in made.folders] == [
        (b"", 0, 0o755),
        (b"a", 7, 0o700),
        (b"a/b", 0, 0o700),
        (b"a/b/c", 0, 0o755),
    ]


def test_removals_of_nothing_leave_no_mark_for_processes_to_see() -> None:
    removals = [Entry(path, Kind.WHITEOUT, mode=0) for path in (b"gone", b"d/gone", b"no/gone")]
    made = plan([file(b"gone"), folder(b"d")], removals)
    assert made.whiteouts == (b"gone",)
    assert [e.path for e in made.folders] == [b""]


def test_a_folder_in_place_of_a_removed_one_is_opaque() -> None:
    made = plan(
        [folder(b"d"), file(b"d/old")],
        [Entry(b"d", Kind.WHITEOUT, mode=0), Entry(b"d/old", Kind.WHITEOUT, mode=0), file(b"d/f")],
    )
    assert (made.opaque, made.whiteouts) == ({b"d"}, ())


def test_an_opaque_root_is_many_removals() -> None:
    made = plan(
        [file(b"a"), folder(b"b"), file(b"b/old"), file(b"c")],
        [Entry(b"", Kind.OPAQUE, mode=0), file(b"b/new"), file(b"c")],
    )
    assert (made.opaque, made.whiteouts) == ({b"b"}, (b"a",))


def test_what_the_layer_hides_itself_is_left_out() -> None:
    made = plan(
        [folder(b"a"), file(b"a/old")],
        [file(b"a"), file(b"a/f"), Entry(b"a/old", Kind.WHITEOUT), folder(b"a/d")],
    )
    assert [[e.path for e in entries] for _, entries in made.files] == [[b"a"]]
    assert [e.path for e in made.folders] == [b""]
    assert made.whiteouts == ()


@pytest.mark.parametrize(
    "layer",
    [
        [file(b"h", link=b"none", digest=None)],
        [file(b"h", link=b"d", digest=None)],
        [file(b"h", link=b"f", digest=None), file(b"f")],
    ],
    ids=["nothing", "a folder", "a file that comes later"],
)
def test_a_hard_link_to_no_file_below_is_refused(layer: list[Entry]) -> None:
    with pytest.raises(InvalidImage, match="hard link h to"):
        plan([folder(b"d"), file(b"f")], layer)


# --- making


def test_what_can_not_be_made_leaves_an_empty_folder(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with (
        pytest.raises(InvalidImage, match="n in the layer can't be made here: File name too"),
        Making(target, owners=False, devices=False) as making,
    ):
        making.folders([folder(b""), folder(b"d"), folder(b"d/" + b"n" * 300)])
    assert not list(target.iterdir())


def test_a_name_that_is_there_is_never_written_through(tmp_path: Path) -> None:
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    outside.write_text("safe")
    making = Making(target, owners=False, devices=False)
    making.other(Entry(b"f", Kind.SYMLINK, link=os.fsencode(outside)))
    with pytest.raises(InvalidImage, match="File exists"), making:
        making.file([file(b"f")], lambda fd: os.write(fd, b"x"))
    assert outside.read_text() == "safe"


def test_more_folders_than_are_kept_open(tmp_path: Path) -> None:
    folders = [folder(b"")] + [folder(b"%03d" % number) for number in range(300)]
    with Making(tmp_path, owners=False, devices=False) as making:
        making.folders(folders)
        for entry in folders[1:]:
            making.file(
                [file(entry.path + b"/f"), file(b"000/" + entry.path)],
                lambda fd: os.write(fd, b"x"),
            )
        making.settle(folders, frozenset(), "")
    assert len(list((tmp_path / "000").iterdir())) == 301
    assert (tmp_path / "000/299").samefile(tmp_path / "299/f")


def test_errors_of_the_system_name_what_was_done_where(tmp_path: Path) -> None:
    with (
        pytest.raises(BackendFailed, match=f"can't write the layer in {tmp_path}: Permission"),
        translated("write the layer", tmp_path),
    ):
        raise PermissionError(13, "Permission denied")


# --- removing and measuring


def deep(folder: Path, levels: int) -> None:
    """Folders in each other; each has a file, and next to it one that is empty."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        for name in ("d", "e"):
            os.mkdir(name, dir_fd=here)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def test_any_depth_is_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    deep(top, 3000)
    remove(top)
    assert not top.exists()


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    top = tmp_path / "top"
    (top / "inner").mkdir(parents=True)
    (top / "inner/link").symlink_to(kept)
    (top / "file").hardlink_to(kept / "file")
    (tmp_path / "link").symlink_to(kept)
    os.mkfifo(top / "fifo")
    for name in ("top", "link", "none"):
        remove(tmp_path / name)
    remove(tmp_path / "nowhere/none")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").read_text() == "x"


def test_measuring_counts_hard_links_once_and_what_is_not_there_as_nothing(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    empty = measure(top)
    (top / "a").write_bytes(os.urandom(100_000))
    one = measure(top)
    assert one >= empty + 100_000
    (top / "b").hardlink_to(top / "a")
    assert measure(top) == one
    assert measure(tmp_path / "none") == 0
