"""Files of a hostile image in a folder of this machine: nothing outside is read or written."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from pybuild.errors import ExportFailed, InvalidImage, PybuildError
from pybuild.export.folder import write_folder
from pybuild.export.rootfs import write_rootfs
from pybuild.files.trees import MemoryTree, NewEntry, Tree
from pybuild.oci.layerindex import Entry, Kind
from pybuild.run.activity import CancelToken
from pybuild.testkit.workbench import file, folder, symlink


class Quiet:
    """An activity that keeps warnings."""

    def __init__(self) -> None:
        self.token = CancelToken()
        self.warnings: list[str] = []

    def log(self, stream: int, data: bytes) -> None: ...

    def progress(self, item: str, done: int, total: int | None) -> None: ...

    def warn(self, message: str, hint: str | None = None) -> None:
        self.warnings.append(message)

    def raise_if_cancelled(self) -> None:
        self.token.raise_if_cancelled()

    @contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        with self.token.on_cancel(callback):
            yield


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder that must stay as it is."""
    place = tmp_path / "outside"
    place.mkdir(mode=0o755)
    (place / "passwd").write_text("untouched")
    (place / "passwd").chmod(0o640)
    before = looks(place)
    yield place
    assert looks(place) == before


def looks(place: Path) -> list[Any]:
    return [
        (path.name, path.lstat().st_mode, path.lstat().st_mtime_ns, path.read_bytes())
        if path.is_file()
        else (path.name, path.lstat().st_mode, path.lstat().st_mtime_ns, b"")
        for path in sorted([place, *place.rglob("*")])
    ]


def write(entries: Iterable[NewEntry], dest: Path) -> None:
    write_folder(MemoryTree(entries), str(dest), None, Quiet())


def test_links_of_the_image_are_written_as_links_and_never_followed(
    tmp_path: Path, outside: Path
) -> None:
    dest = tmp_path / "dest"
    target = os.fsencode(outside)
    write([symlink(b"a", target), symlink(b"b", b"../outside/passwd"), file(b"c", b"c")], dest)
    assert (dest / "a").readlink() == outside
    assert (dest / "c").read_text() == "c"
    # Another image has folders and files where this one had its links.
    write([folder(b"a", 0o700), file(b"a/passwd", b"new"), file(b"b", b"new", 0o4777)], dest)
    assert not (dest / "a").is_symlink()
    assert (dest / "a/passwd").read_text() == "new"
    assert (dest / "b").read_text() == "new"


def test_links_that_were_in_the_folder_are_replaced(tmp_path: Path, outside: Path) -> None:
    dest = tmp_path / "dest"
    dest.mkdir()
    for name in ("etc", "file", "fifo", "link"):
        (dest / name).symlink_to(outside if name == "etc" else outside / "passwd")
    write(
        [
            folder(b"etc"),
            file(b"etc/passwd", b"new"),
            file(b"file", b"new"),
            symlink(b"link", b"elsewhere"),
            NewEntry(Entry(b"fifo", Kind.FIFO, 0o644)),
        ],
        dest,
    )
    assert (dest / "etc/passwd").read_text() == "new"
    assert (dest / "link").readlink() == Path("elsewhere")


class Forged(Tree):
    """A tree that says what no image can hold."""

    def __init__(self, names: dict[bytes, Sequence[bytes]], kinds: dict[bytes, Kind]) -> None:
        self._names = names
        self._kinds = kinds

    def get(self, path: bytes) -> Entry | None:
        return Entry(path, self._kinds.get(path, Kind.FILE), 0o755, size=1)

    def children(self, path: bytes) -> Sequence[bytes]:
        return self._names.get(path, ())

    def open(self, path: bytes) -> BinaryIO:
        return io.BytesIO(b"!")


@pytest.mark.parametrize(
    "names",
    [
        {b"": [b".."], b"..": [b"outside"], b"../outside": [b"passwd"]},
        {b"": [b"."], b".": [b"x"]},
        {b"": [b"d"], b"d": [b".."], b"d/..": [b".."]},
        {b"": [b"a\0b"]},
    ],
)
def test_a_name_that_leads_out_is_refused(
    tmp_path: Path, outside: Path, names: dict[bytes, Sequence[bytes]]
) -> None:
    dest = tmp_path / "dest"
    kinds = dict.fromkeys((b"", b"..", b".", b"d", b"d/..", b"../outside"), Kind.DIRECTORY)
    with pytest.raises(InvalidImage, match="impossible name"):
        write_folder(Forged(names, kinds), str(dest), None, Quiet())


class Swapping(MemoryTree):
    """Puts a link to `outside` in the place of a folder while a file in it is written."""

    def __init__(self, entries: Iterable[NewEntry], dest: Path, outside: Path) -> None:
        super().__init__(entries)
        self._dest = dest
        self._outside = outside

    def open(self, path: bytes) -> BinaryIO:
        if path == b"d/first":
            (self._dest / "d").rename(self._dest / "moved")
            (self._dest / "d").symlink_to(self._outside)
        return super().open(path)


def test_a_folder_that_is_swapped_meanwhile_leads_nowhere(tmp_path: Path, outside: Path) -> None:
    dest = tmp_path / "dest"
    first = file(b"d/first", b"linked")
    again = replace(first, entry=replace(first.entry, path=b"e", link=b"d/first"), content=None)
    tree = Swapping([folder(b"d"), first, file(b"d/passwd", b"x"), again], dest, outside)
    # The hard link names its target by a path, which is a link by now.
    with pytest.raises(ExportFailed, match="can't write e: "):
        write_folder(tree, str(dest), None, Quiet())
    assert (dest / "moved/passwd").read_text() == "x"


def test_folders_that_flip_all_the_time_lead_nowhere(tmp_path: Path, outside: Path) -> None:
    dest = tmp_path / "dest"
    (dest / "d").mkdir(parents=True)
    (dest / "link").symlink_to(outside)
    over = threading.Event()

    def flip() -> None:
        while not over.is_set():
            for one, other in (("d", "x"), ("link", "d"), ("d", "link"), ("x", "d")):
                try:
                    (dest / one).rename(dest / other)
                except OSError:
                    continue

    flipper = threading.Thread(target=flip)
    flipper.start()
    try:
        for _ in range(60):
            try:
                write([folder(b"d"), *(file(b"d/passwd%d" % n, b"x") for n in range(5))], dest)
            except PybuildError:
                continue
    finally:
        over.set()
        flipper.join()


def test_impossible_numbers_end_in_words(tmp_path: Path) -> None:
    far = replace(file(b"far", b""), entry=replace(file(b"far", b"").entry, mtime=1 << 62))
    odd = NewEntry(Entry(b"odd", Kind.CHARACTER, device=(1 << 40, 1)))
    long = symlink(b"long", b"x" * 5000)
    for entry in (far, odd, long):
        try:
            write([entry], tmp_path / "dest")
        except PybuildError:
            continue
    assert not list((tmp_path / "dest").glob(".pybuild*"))


@pytest.mark.root
def test_root_gives_owners_modes_attributes_and_devices(tmp_path: Path) -> None:
    entries = [
        NewEntry(Entry(b"null", Kind.CHARACTER, 0o640, 7, 8, device=(1, 3))),
        NewEntry(Entry(b"pipe", Kind.FIFO, 0o622)),
        replace(file(b"su", b"#!"), entry=Entry(b"su", Kind.FILE, 0o4755, 33, 44, 2)),
        NewEntry(Entry(b"link", Kind.SYMLINK, uid=5, gid=6, link=b"/su")),
    ]
    activity = Quiet()
    write_folder(MemoryTree(entries), str(tmp_path), None, activity)
    null, su, link = (os.lstat(tmp_path / name) for name in ("null", "su", "link"))
    if activity.warnings:
        pytest.skip("inherent: this container's root may not make devices")
    assert stat.S_ISCHR(null.st_mode)
    assert (null.st_rdev, null.st_uid, stat.S_IMODE(null.st_mode)) == (os.makedev(1, 3), 7, 0o640)
    assert (su.st_uid, su.st_gid, stat.S_IMODE(su.st_mode)) == (33, 44, 0o4755)
    assert (link.st_uid, link.st_gid) == (5, 6)


def test_a_tar_of_odd_names_is_byte_exact(tmp_path: Path) -> None:
    names = [b"\xff\xfe", b"new\nline", b"\xc3\xa9", b"e\xcc\x81", b"x" * 255]
    parts: list[bytes] = []
    write_rootfs(MemoryTree([file(name, b"1") for name in names]), parts.append, None, Quiet())
    (tmp_path / "a.tar").write_bytes(b"".join(parts))
    write([file(name, b"1") for name in names], tmp_path / "dest")
    made = sorted(os.fsencode(path.name) for path in (tmp_path / "dest").iterdir())
    assert made == sorted(names)
    with tarfile.open(tmp_path / "a.tar", errors="surrogateescape") as archive:
        found = [os.fsencode(name) for name in archive.getnames()]
    assert found == sorted(names)
