"""Snapshots that pybuild fills hold what containerd's diff service makes of the same layers."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from threading import Barrier
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from descriptors import open_below
from pybuild.backend import ROLayer
from pybuild.errors import (
    BackendError,
    BackendFailed,
    BuildCancelled,
    CopyFailed,
    InvalidImage,
)
from pybuild.files.layerfiles import LayerFiles
from pybuild.files.trees import NewEntry, Tree
from pybuild.oci.arriving import ArrivingLayer
from pybuild.oci.descriptor import OCI_LAYER_GZIP, OCI_LAYER_TAR, Descriptor, LayerDiff
from pybuild.oci.image_config import ImageConfig, serialize_config
from pybuild.oci.layerindex import Entry, Kind, LayerIndex
from pybuild.oci.layertar import read_index
from pybuild.oci.platform import host_platform
from pybuild.oci.tarformat import Member
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left
from pybuild.testkit.registry import Registry
from pybuild.testkit.workbench import RecordingActivity, Workbench
from pybuild.testkit.workbench import file as new_file
from pybuild_containerd import unpack
from pybuild_containerd.backend import ContainerdBackend, open_backend
from pybuild_containerd.client import Client
from pybuild_containerd.content import ContentStore
from pybuild_containerd.filling import Stacked
from pybuild_containerd.layers import ContainerdROLayer
from pybuild_containerd.leases import Session
from pybuild_containerd.snapshots import Snapshots, layer_folders
from pybuild_containerd.unpack import Unpacker, chain_ids
from unpacking import BLOCK, CHARACTER, FIFO, FOLDER, HARD, LINK, file, member, tar

pytestmark = [pytest.mark.root, pytest.mark.containerd]

Layer = Sequence[Member | tuple[Member, bytes]]
CAPABILITY = (("security.capability", bytes.fromhex("0100000200040000" + "00" * 12)),)
LONG = b"n" * 255
FIRST = [
    member(b"./", FOLDER, mode=0o700, uid=9, mtime=3),
    member(b"a/", FOLDER, mode=0o750, uid=3, gid=4, mtime=10),
    file(b"a/b", b"content", mode=0o4755, uid=5, gid=6, mtime=10),
    member(b"a/again", HARD, link=b"a/b", mode=0o4755, uid=5, gid=6, mtime=10),
    member(b"b/", FOLDER, mode=0o3777, mtime=10, xattrs=(("user.kept", b"1"),)),
    file(b"b/a", b"x", mode=0o644, uid=1, mtime=10, xattrs=CAPABILITY),
    member(b"c", LINK, link=b"b/a", uid=2, gid=3, mtime=11),
    member(b"p", FIFO, mode=0o600, uid=8, mtime=10),
    member(b"tty", CHARACTER, mode=0o620, gid=5, mtime=10, device=(4, 300)),
    member(b"disk", BLOCK, mode=0o660, gid=6, mtime=10, device=(8, 1)),
    member(b"g/", FOLDER, mode=0o711, uid=70_000, gid=100_000, mtime=12),
    file(b"g/h", b"h" * 600_000, mode=0o640, uid=3_000_000_000, gid=70_000, mtime=10),
    file(b"implied/deep/f", b"", mtime=0),
    file(LONG, b"long"),
    file(b"/".join([LONG[:100]] * 9), b"deep"),
    member(b"l/", FOLDER, mode=0o755),
    member(b"to-l", LINK, link=b"l"),
    file(b"to-l/f", b"through a link"),
]
CHAIN: list[Layer] = [
    FIRST,
    [
        member(b".wh.c"),
        member(b"a/b/", FOLDER, mode=0o700, mtime=20),
        file(b"a/b/x", b"x", mtime=20),
        file(b"a/again", b"by itself", mtime=20),
        member(b"b/", FOLDER, mode=0o755, mtime=20),
        member(b"b/.wh..wh..opq"),
        file(b"b/new", b"n", mtime=20),
        file(b"g/inner", b"its folder is the lower one's", mtime=20),
        member(b"l/.wh.f"),
    ],
    [],
    [
        file(b"a/b", b"a file again", mode=0o2711, uid=1, mtime=30),
        member(b"g", LINK, link=b"nowhere", mtime=30),
        member(b"p/", FOLDER, mode=0o755, mtime=30),
        file(b"p/f", b"in place of a FIFO", mtime=30),
        member(b"tty", FIFO, mtime=30),
    ],
    [member(b"g/", FOLDER, mode=0o755, mtime=40), file(b"g/h", b"new", mtime=40)],
]


@dataclass(frozen=True)
class Raw:
    """What is on disk; ``names`` are those of the same regular file."""

    mode: int
    uid: int
    gid: int
    mtime: int
    device: int
    xattrs: Mapping[str, bytes]
    content: bytes | str
    names: frozenset[str]

    @property
    def is_whiteout(self) -> bool:
        return stat.S_ISCHR(self.mode) and self.device == 0


class Side:
    """Layers unpacked in a namespace of their own, by pybuild or by containerd."""

    def __init__(
        self, daemon: PrivateContainerd, namespace: str, folder: Path, *, fills: bool
    ) -> None:
        self._resources = ExitStack()
        enter = self._resources.enter_context
        self.client = enter(Client(daemon.address, namespace))
        enter(Session(self.client))
        self.content = ContentStore(self.client)
        self.snapshots = Snapshots(self.client, "overlayfs")
        self.files = LayerFiles(self.content.open, folder / "indexes", folder)
        self.unpacker = Unpacker(
            self.client, self.snapshots, self.content, self.files, fills=fills, fills_early=fills
        )
        self.activity = RecordingActivity()

    def close(self) -> None:
        self._resources.close()

    def add(self, blob: bytes) -> LayerDiff:
        """Raises InvalidImage as `read_index` does."""
        diff_id, _ = read_index(io.BytesIO(blob))
        digest = f"sha256:{sha256(blob).hexdigest()}"
        self.content.write_small(blob, digest)
        media_type = OCI_LAYER_GZIP if blob.startswith(b"\x1f\x8b") else OCI_LAYER_TAR
        return LayerDiff(diff_id, Descriptor(media_type, digest, len(blob)))

    def ensure(self, layers: Sequence[LayerDiff]) -> None:
        for layer in layers:
            self.files.index(layer)
        self.unpacker.ensure(tuple(layers), self.activity)

    @contextmanager
    def folder(self, layers: Sequence[LayerDiff]) -> Iterator[Path]:
        """That of the topmost of `layers`."""
        key = f"look-{os.urandom(8).hex()}"
        folders = layer_folders(self.snapshots.view(key, chain_ids(layers)[-1]))
        assert folders is not None
        try:
            yield Path(folders.lowers[0])
        finally:
            self.snapshots.remove(key)

    def raw(self, layers: Sequence[LayerDiff]) -> dict[str, Raw]:
        with self.folder(layers) as folder:
            return look(folder)

    def tree(self, layers: Sequence[LayerDiff]) -> Tree:
        return self.files.tree(layers)

    @property
    def folder_of_snapshots(self) -> Path:
        key = f"look-{os.urandom(8).hex()}"
        folders = layer_folders(self.snapshots.prepare(key))
        self.snapshots.remove(key)
        assert folders is not None
        assert folders.upper is not None
        return Path(folders.upper).parents[1]

    def left(self) -> list[str]:
        """Snapshots that aren't committed."""
        return [found.name for found in self.snapshots.list() if found.kind != "committed"]


@dataclass
class Sides:
    """The same layers unpacked both ways; ``applied`` counts those that pybuild left."""

    own: Side
    containerd: Side
    applied: int = 0

    def add(self, blob: bytes) -> LayerDiff:
        self.own.add(blob)
        return self.containerd.add(blob)

    def chain(self, layers: Sequence[Layer]) -> list[LayerDiff]:
        return [self.add(tar(*layer)) for layer in layers]

    def unpack(self, layers: Sequence[LayerDiff]) -> None:
        for side in (self.own, self.containerd):
            side.ensure(layers)

    def differences(self, layers: Sequence[LayerDiff]) -> list[tuple[str, Raw | None, Raw | None]]:
        """What differs in the folder of the topmost layer, beyond what `fill` tells."""
        own, other = (side.raw(layers) for side in (self.own, self.containerd))
        index = self.own.files.index(layers[-1])
        below = self.own.tree(layers[:-1])
        for found in (own, other):
            _drop_needless(found, index, below)
        for found in (own, other):
            for path, raw in found.items():
                if path == "" or raw.is_whiteout or index.get(os.fsencode(path)) is None:
                    found[path] = replace(raw, mtime=0)
        paths = sorted(own.keys() | other.keys())
        return [(p, own.get(p), other.get(p)) for p in paths if own.get(p) != other.get(p)]


def _drop_needless(found: dict[str, Raw], index: LayerIndex, below: Tree) -> None:
    """Drop whiteouts of nothing, and folders that were made for these alone."""
    for path, raw in list(found.items()):
        hidden = any(index.is_opaque(os.fsencode(above)) for above in Path(path).parents)
        if raw.is_whiteout and (hidden or below.get(os.fsencode(path)) is None):
            del found[path]
    for path in sorted(found, reverse=True):
        name = os.fsencode(path)
        told = not path or index.get(name) is not None or index.is_opaque(name)
        inside = any(each.startswith(f"{path}/") for each in found)
        if stat.S_ISDIR(found[path].mode) and not told and not inside:
            del found[path]


def look(folder: Path) -> dict[str, Raw]:
    """All that is in a folder, by path, and the folder itself as an empty one."""
    found: dict[str, Raw] = {}
    inodes: dict[int, set[str]] = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        name = "" if path == folder else str(path.relative_to(folder))
        kind = stat.S_IFMT(status.st_mode)
        inside: bytes | str = b""
        if kind == stat.S_IFREG:
            inside = path.read_bytes()
            inodes.setdefault(status.st_ino, set()).add(name)
        elif kind == stat.S_IFLNK:
            inside = str(path.readlink())
        names = os.listxattr(path, follow_symlinks=False)
        found[name] = Raw(
            status.st_mode,
            status.st_uid,
            status.st_gid,
            int(status.st_mtime),
            status.st_rdev,
            {each: os.getxattr(path, each, follow_symlinks=False) for each in names},
            inside,
            frozenset(),
        )
    for group in inodes.values():
        for name in group:
            found[name] = replace(found[name], names=frozenset(group))
    return found


@contextmanager
def both(containerd: PrivateContainerd, folder: Path) -> Iterator[Sides]:
    word = os.urandom(4).hex()
    with ExitStack() as stack:
        made = []
        for name, fills in (("own", True), ("apply", False)):
            (folder / name).mkdir()
            side = Side(containerd, f"e2e-{name}-{word}", folder / name, fills=fills)
            stack.callback(side.close)
            made.append(side)
        sides = Sides(*made)
        apply_layer = unpack.apply_layer

        def counted(client: Client, *rest: Any) -> None:
            sides.applied += client is sides.own.client
            apply_layer(client, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(unpack, "apply_layer", counted)
            yield sides
        for side in made:
            assert side.left() == []
    for name in ("own", "apply"):
        check_nothing_left(containerd.address, f"e2e-{name}-{word}", containerd.folder)


@pytest.fixture
def sides(containerd: PrivateContainerd, tmp_path: Path) -> Iterator[Sides]:
    with both(containerd, tmp_path) as made:
        yield made


@pytest.mark.parametrize("count", range(1, len(CHAIN) + 1))
def test_a_filled_snapshot_holds_what_containerd_makes_of_the_layer(
    sides: Sides, count: int
) -> None:
    layers = sides.chain(CHAIN[:count])
    sides.unpack(layers)
    assert sides.differences(layers) == []
    assert sides.applied == 0


@pytest.mark.parametrize(
    "layer",
    [
        [member(b".wh..wh..opq"), file(b"new", b"n")],
        [member(b".wh.a"), member(b"a/", FOLDER, mode=0o755), file(b"a/new", b"n")],
        [file(b"none/f", b"its folder isn't told")],
        [member(b"b/.wh..wh..opq"), file(b"l/inner/f", b"")],
        [file(b"f", b"acl", xattrs=(("system.posix_acl_access", bytes.fromhex(
            "0200000001000600ffffffff02000600050000000400040000000000"
            "10000600ffffffff20000400ffffffff")),))],
        [file(b"f", b"", xattrs=(("user.containers.x", b"1"),))],
        [file(b"f", b"", mtime=-5)],
        [file(b"implied/deep/g", b"no layer tells its folder")],
        [file(b"b/own/f", b"its folder has the group of the one above")],
    ],
    ids=["opaque root", "folder replaced", "implied", "implied below", "acl", "hidden", "early", "implied again", "group"],
)  # fmt: skip
def test_what_containerd_would_make_otherwise_is_left_to_it(sides: Sides, layer: Layer) -> None:
    layers = sides.chain([FIRST, layer])
    sides.unpack(layers)
    assert sides.own.raw(layers).keys() == sides.containerd.raw(layers).keys()
    assert [each[0] for each in sides.differences(layers)] == []
    assert sides.applied == 1


def test_folders_over_a_link_are_left_to_containerd(sides: Sides) -> None:
    below = [member(b"a/", FOLDER, mode=0o1700, mtime=1), member(b"b", LINK, link=b"a")]
    layers = sides.chain([below, [file(b"b/f", b"", mtime=2)], [file(b"b/f", b"", mtime=3)]])
    for count in (1, 2, 3):
        sides.unpack(layers[:count])
        assert sides.differences(layers[:count]) == []
    assert sides.applied == 2


def test_a_hard_link_to_a_lower_layer_becomes_a_copy(sides: Sides) -> None:
    layers = sides.chain([FIRST, [], [member(b"g/moved", HARD, link=b"b/a")]])
    sides.own.ensure(layers)
    assert sides.applied == 0
    found = sides.own.raw(layers)["g/moved"]
    first = sides.own.raw(layers[:1])["b/a"]
    assert replace(found, names=frozenset()) == replace(first, names=frozenset())
    with pytest.raises(BackendFailed, match="no such file"):  # containerd looks in the layer alone
        sides.containerd.ensure(layers)


def test_whiteouts_of_nothing_are_left_out(sides: Sides) -> None:
    layers = sides.chain([FIRST, [member(b".wh.none"), member(b"a/.wh.none"), member(b".wh.c")]])
    sides.unpack(layers)
    assert sides.own.raw(layers).keys() == {"", "c"}
    assert sides.containerd.raw(layers).keys() == {"", "none", "a", "a/none", "c"}


def test_a_layer_whose_lower_ones_are_unknown_is_left_to_containerd(
    sides: Sides, tmp_path: Path
) -> None:
    layers = sides.chain(CHAIN[:2])
    sides.own.ensure(layers[:1])
    sides.own.unpacker._files = LayerFiles(sides.own.content.open, None, tmp_path)
    sides.own.unpacker.ensure(tuple(layers), sides.own.activity)
    sides.containerd.ensure(layers)
    assert sides.applied == 1
    assert sides.differences(layers) == []


# Damage, cancelling, full disks


def test_a_layer_that_isnt_what_it_should_be_leaves_no_snapshot(sides: Sides) -> None:
    first, second = sides.chain(CHAIN[:2])
    sides.own.files.index(first)
    wrong = LayerDiff(first.diff_id, second.blob)
    with pytest.raises(InvalidImage, match=f"holds {second.diff_id}, but the image's config says"):
        sides.own.unpacker.ensure((wrong,), sides.own.activity)
    assert list(sides.own.snapshots.list()) == []


def test_a_cancel_in_the_middle_of_a_layer_leaves_no_snapshot(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = sides.add(tar(file(b"a", b"x" * 4_000_000), file(b"b", b"y" * 4_000_000)))
    side = sides.own
    side.files.index(layer)
    writes: list[int] = []
    write = os.write

    def cancelling(fd: int, data: bytes) -> int:
        writes.append(len(data))
        if len(writes) == 2:
            side.activity.cancel()
        return write(fd, data)

    monkeypatch.setattr("pybuild.unpacking.contents.os.write", cancelling)
    with pytest.raises(BuildCancelled):
        side.unpacker.ensure((layer,), side.activity)
    assert sum(writes) < 8_000_000
    assert list(side.snapshots.list()) == []


@pytest.mark.parametrize("full", [True, False])
def test_a_full_disk_is_told_and_what_else_fails_is_left_to_containerd(
    sides: Sides, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    layer = sides.add(tar(*FIRST))
    error = OSError(28, "No space left on device") if full else OSError(5, "Input/output error")

    def failing(*_args: object, **_kwargs: object) -> None:
        raise error

    monkeypatch.setattr("pybuild.unpacking.making.os.fchmod", failing)
    sides.own.files.index(layer)
    if full:
        with pytest.raises(BackendFailed, match="no space left on the file system"):
            sides.own.unpacker.ensure((layer,), sides.own.activity)
        assert list(sides.own.snapshots.list()) == []
        return
    sides.unpack([layer])
    assert sides.applied == 1
    assert sides.differences([layer]) == []


# What is put

LARGE = os.urandom(3 << 20)
PUT = [
    replace(
        new_file(b"d/large", LARGE, mode=0o4711, uid=70_000, gid=5, mtime=50),
        content=lambda: io.BufferedReader(io.BytesIO(LARGE)),  # type: ignore[arg-type]
    ),
    new_file(b"d/small", b"small", mtime=2_000_000_000, xattrs=CAPABILITY),
    new_file(b"d/empty", b""),
    new_file(b"d/sub/large", LARGE[::-1]),
    NewEntry(Entry(b"d", Kind.DIRECTORY, mode=0o2750, uid=1, mtime=60)),
    NewEntry(Entry(b"d/sub", Kind.DIRECTORY, mode=0o500, mtime=61)),
    NewEntry(Entry(b"a-link", Kind.FILE, link=b"d/large")),
    NewEntry(Entry(b"z/link", Kind.FILE, link=b"d/large")),
    NewEntry(Entry(b"z", Kind.DIRECTORY, mode=0o755)),
    NewEntry(Entry(b"s", Kind.SYMLINK, link=b"d")),
    NewEntry(Entry(b"f", Kind.FIFO, mode=0o600)),
]
PUT_ON = [NewEntry(Entry(b"old", Kind.DIRECTORY, mode=0o700)), new_file(b"old/large", LARGE * 2)]


class Put:
    """Steps in a namespace of their own."""

    def __init__(self, daemon: PrivateContainerd, folder: Path, **options: object) -> None:
        self.namespace = f"e2e-put-{os.urandom(4).hex()}"
        place = {"address": daemon.address, "namespace": self.namespace}
        backend = open_backend({**place, "cache_dir": folder / "cache", **options})
        assert isinstance(backend, ContainerdBackend)
        self.backend = backend
        self.bench = Workbench(backend, "")

    @property
    def snapshots(self) -> Snapshots:
        return self.backend._space.snapshots

    def names(self) -> list[str]:
        return sorted(found.name for found in self.snapshots.list())

    def raw(self, layer: ROLayer) -> dict[str, Raw]:
        return self.raw_of(layer.diffs)

    def raw_of(self, layers: Sequence[LayerDiff]) -> dict[str, Raw]:
        key = f"look-{os.urandom(8).hex()}"
        folders = layer_folders(self.snapshots.view(key, chain_ids(layers)[-1]))
        assert folders is not None
        try:
            return look(Path(folders.lowers[0]))
        finally:
            self.snapshots.remove(key)


@pytest.fixture
def begun(containerd: PrivateContainerd, tmp_path: Path) -> Iterator[Callable[..., Put]]:
    with ExitStack() as stack:

        def begin(**options: object) -> Put:
            put = Put(containerd, tmp_path, **options)
            stack.callback(check_nothing_left, containerd.address, put.namespace, containerd.folder)
            stack.callback(put.backend.close)
            stack.enter_context(put.bench)
            return put

        yield begin


def test_large_files_are_in_the_snapshot_once_they_are_put(
    begun: Callable[..., Put], sides: Sides
) -> None:
    put = begun()
    lower = put.bench.put(put.bench.scratch(), *PUT_ON)
    removal = NewEntry(Entry(b"old/large", Kind.WHITEOUT, mode=0))
    old = NewEntry(Entry(b"old", Kind.DIRECTORY, mode=0o711))
    upper = put.bench.put(lower, *PUT, old, removal, newest=1_000_000_000)
    assert put.names() == sorted(chain_ids(upper.diffs))
    layers = []
    for layer in upper.diffs:
        with put.backend.open_blob(layer.blob.digest) as blob:
            layers.append(sides.containerd.add(blob.read()))
        sides.containerd.ensure(layers)
        made = ContainerdROLayer(put.backend._space, tuple(layers), layer)
        own, other = put.raw(made), sides.containerd.raw(layers)
        for found in (own, other):
            for path, raw in found.items():
                if path == "" or raw.is_whiteout:
                    found[path] = replace(raw, mtime=0)
        assert own == other
    assert own["d/small"].mtime == 1_000_000_000
    assert own["z/link"].names == {"d/large", "a-link", "z/link"}


def test_a_folder_without_an_entry_is_left_to_later(begun: Callable[..., Put]) -> None:
    put = begun()
    lower = put.bench.put(put.bench.scratch(), *PUT_ON)
    upper = put.bench.put(lower, new_file(b"no/entry", LARGE * 2))
    assert put.names() == chain_ids(lower.diffs)
    put.backend._space.unpacker.ensure(upper.diffs, put.bench.activity)
    assert put.names() == sorted(chain_ids(upper.diffs))


@pytest.mark.parametrize("options", [{"unpack": False}, {"snapshotter": "native"}])
def test_where_nobody_needs_it_no_snapshot_is_begun(
    begun: Callable[..., Put], options: dict[str, object]
) -> None:
    put = begun(**options)
    put.bench.put(put.bench.scratch(), *PUT)
    assert put.names() == []


def test_small_files_and_what_is_on_layers_not_unpacked_yet_wait(begun: Callable[..., Put]) -> None:
    put = begun()
    small = put.bench.put(put.bench.scratch(), new_file(b"small", b"x"))
    put.bench.put(small, *PUT)
    assert put.names() == []


def test_a_content_that_fails_leaves_no_snapshot(begun: Callable[..., Put]) -> None:
    put = begun()

    def vanished() -> NoReturn:
        raise FileNotFoundError(2, "No such file or directory")

    lost = NewEntry(Entry(b"y", Kind.FILE, size=5_000_000), vanished)
    with pytest.raises(CopyFailed, match="can't read y"):
        put.bench.put(put.bench.scratch(), *PUT, lost)
    with pytest.raises(CopyFailed, match="y changed while it was read"):
        put.bench.put(put.bench.scratch(), *PUT, replace(lost, content=lambda: io.BytesIO(b"x")))
    assert put.names() == []


def test_a_cancel_while_a_large_file_is_put_leaves_no_snapshot(begun: Callable[..., Put]) -> None:
    put = begun()

    def opened() -> io.BytesIO:
        put.bench.activity.cancel()
        return io.BytesIO(LARGE * 2)

    large = NewEntry(Entry(b"y", Kind.FILE, size=2 * len(LARGE)), opened)
    with pytest.raises(BuildCancelled):
        put.bench.put(put.bench.scratch(), *PUT, large)
    assert put.names() == []


@pytest.mark.parametrize("call", ["mkdir", "fchmod", "link", "symlink"])
def test_what_fails_in_the_snapshot_alone_fails_no_step(
    begun: Callable[..., Put], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def failing(*_args: object, **_kwargs: object) -> None:
        raise OSError(5, "Input/output error")

    put = begun()
    with monkeypatch.context() as patch:
        patch.setattr(f"pybuild.unpacking.making.os.{call}", failing)
        layer = put.bench.put(put.bench.scratch(), *PUT)
    assert put.names() == []
    put.backend._space.unpacker.ensure(layer.diffs, put.bench.activity)
    assert put.raw(layer)["z/link"].content == LARGE


@pytest.mark.parametrize("call", ["write", "fchmod", "symlink"])
def test_a_disk_that_is_full_while_a_layer_is_put_is_told(
    begun: Callable[..., Put], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def failing(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    put = begun()
    place = "pybuild.unpacking.contents" if call == "write" else "pybuild.unpacking.making"
    with monkeypatch.context() as patch:
        patch.setattr(f"{place}.os.{call}", failing)
        with pytest.raises(BackendFailed, match="no space left on the file system"):
            put.bench.put(put.bench.scratch(), *PUT)
    assert put.names() == []


def test_two_builds_at_once_fill_the_same_chain(begun: Callable[..., Put], sides: Sides) -> None:
    layers = tuple(sides.chain(CHAIN))
    for layer in layers:
        sides.own.files.index(layer)
    other = Unpacker(
        sides.own.client,
        sides.own.snapshots,
        sides.own.content,
        sides.own.files,
        fills=True,
        fills_early=True,
    )
    together = Barrier(2)

    def build(unpacker: Unpacker) -> str:
        together.wait()
        return unpacker.ensure(layers, sides.own.activity)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(build, (sides.own.unpacker, other)))
    assert found == [chain_ids(layers)[-1]] * 2
    sides.containerd.ensure(layers)
    assert sides.differences(layers) == []


# Layers whose files are made while they arrive

PLAIN = FIRST[:-1]
ALONE = [file(b"only", b"by itself")]


def arrive(side: Side, layer: LayerDiff, *, restarts: int = 0) -> None:
    """The layer comes, in small pieces, and then its index is known."""
    with closing(side.content.open(layer.blob.digest)) as stream:
        blob = stream.read()
    files = side.unpacker.arriving((layer,), layer.blob)
    assert files is not None
    with files, closing(ArrivingLayer(len(blob), files)) as arriving:
        for _ in range(restarts):
            arriving.write(blob[: len(blob) * 2 // 3])
            arriving.restart()
        for at in range(0, len(blob), 10_000):
            arriving.write(blob[at : at + 10_000])
        found = arriving.finish()
        assert found is not None
        side.files.on_arrival([layer])(layer.blob.digest, *found)


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[LayerDiff]:
    """Layers whose files are made when they are there."""
    layers: list[LayerDiff] = []
    fill = unpack.fill

    def counted(stacked: Stacked, *rest: Any) -> None:
        layers.append(stacked.layer)
        fill(stacked, *rest)

    monkeypatch.setattr(unpack, "fill", counted)
    return layers


@pytest.mark.parametrize(
    ("layer", "early"),
    [
        (PLAIN, True),
        (ALONE, True),
        ([file(b"./a/b", b"its name begins with a point"), member(b"./a/", FOLDER)], True),
        ([file(b"b", b"second by name"), member(b"a", HARD, link=b"b")], True),
        ([file(b"d/.wh.gone", b"a removal with content"), file(b"d/f", b"1")], True),
        (FIRST, False),
        ([file(b"a", b"first"), file(b"a", b"and again")], False),
        ([file(b"a", b"first"), member(b"a", LINK, link=b"b")], False),
        ([file(b"a/b", b"first"), file(b"a", b"no folder any more")], False),
        ([file(b"/absolute", b"1")], False),
        ([file(b"early", b"1", mtime=-5)], False),
        ([file(b"f", b"1", xattrs=(("user.containers.x", b"1"),))], False),
        ([member(b"g/", FOLDER, mode=0o2755), file(b"g/in/f", b"1")], False),
        ([member(b"a", LINK, link=b"b")], False),
    ],
)
@pytest.mark.parametrize("restarts", [0, 2])
def test_what_was_made_while_a_layer_came_is_what_containerd_makes_of_it(
    sides: Sides, filled: list[LayerDiff], layer: Layer, early: bool, restarts: int
) -> None:
    first, second = sides.chain([layer, [file(b"above", b"1")]])
    arrive(sides.own, first, restarts=restarts)
    assert len(sides.own.left()) <= 1
    sides.unpack([first])
    assert sides.differences([first]) == []
    assert bool(filled or sides.applied) == (not early)
    assert sides.own.left() == []
    sides.unpack([first, second])
    assert sides.differences([first, second]) == []


def test_only_the_lowest_layer_that_is_not_there_is_made_early(sides: Sides) -> None:
    first, second = sides.chain([PLAIN, ALONE])
    unpacker = sides.own.unpacker
    assert unpacker.arriving((first, second), second.blob) is None
    assert unpacker.arriving((first, second), first.blob) is not None
    sides.own.ensure([first])
    assert unpacker.arriving((first, second), first.blob) is None
    assert sides.own.left() == []


def test_files_that_nobody_needs_are_dropped(sides: Sides, filled: list[LayerDiff]) -> None:
    [layer] = sides.chain([PLAIN])
    folder = sides.own.folder_of_snapshots
    others = set(open_below(folder))
    for _ in range(2):
        arrive(sides.own, layer)
        assert len(sides.own.left()) == 1
    before = set(open_below(folder)) - others
    sides.own.unpacker.close()
    assert sides.own.left() == []
    assert before
    assert set(open_below(folder)) <= others
    sides.own.ensure([layer])
    assert filled == [layer]


def test_files_of_another_layer_than_the_config_names_are_dropped(sides: Sides) -> None:
    first, second = sides.chain([PLAIN, ALONE])
    wrong = LayerDiff(first.diff_id, second.blob)
    arrive(sides.own, wrong)
    with pytest.raises(InvalidImage, match="but the image's config says"):
        sides.own.unpacker.ensure((wrong,), sides.own.activity)
    sides.own.unpacker.close()
    assert sides.own.left() == []


@pytest.mark.parametrize("call", ["write", "open", "fchown", "utime"])
@pytest.mark.parametrize("full", [True, False])
def test_a_failure_while_a_layer_comes_is_told_if_the_disk_is_full(
    sides: Sides, monkeypatch: pytest.MonkeyPatch, call: str, full: bool
) -> None:
    def failing(*_args: object, **_kwargs: object) -> None:
        raise OSError(*((28, "No space left on device") if full else (5, "I/O error")))

    [layer] = sides.chain([ALONE])
    place = "contents" if call == "write" else "making"
    with monkeypatch.context() as patch:
        patch.setattr(f"pybuild.unpacking.{place}.os.{call}", failing)
        if full and call != "open":  # where not even the folder can be opened, it isn't tried
            with pytest.raises(BackendFailed, match="no space left on the file system"):
                arrive(sides.own, layer)
        else:
            arrive(sides.own, layer)
    assert sides.own.left() == []
    sides.unpack([layer])
    assert sides.differences([layer]) == []


def test_a_pulled_image_has_its_files_when_it_has_come(
    begun: Callable[..., Put], registry: Registry, sides: Sides, filled: list[LayerDiff]
) -> None:
    layers = sides.chain([PLAIN, ALONE])
    config = serialize_config(
        ImageConfig(host_platform(), diff_ids=tuple(layer.diff_id for layer in layers))
    )
    registry.add_image("app:1", config, [tar(*PLAIN), tar(*ALONE)], layer_type=OCI_LAYER_TAR)
    put = begun()
    base = put.bench.image(f"{registry.address}/app:1")
    layer = put.bench.hold(put.backend.checkout(base, put.bench.activity))
    assert [name for name in put.names() if not name.startswith("pybuild-")] == []
    put.bench.create(layer, "above", base=base)
    assert put.names() == sorted(chain_ids(layer.diffs))
    assert filled == [layer.diffs[1]]
    sides.own.ensure(layers[:1])
    arrived, unpacked = put.raw_of(layer.diffs[:1]), sides.own.raw(layers[:1])
    # nobody sets the time of a snapshot's own folder
    unpacked[""] = replace(unpacked[""], mtime=arrived[""].mtime)
    assert arrived == unpacked


def test_an_image_that_is_only_read_has_no_files(
    begun: Callable[..., Put], registry: Registry
) -> None:
    diff_id, _ = read_index(io.BytesIO(tar(*PLAIN)))
    config = serialize_config(ImageConfig(host_platform(), diff_ids=(diff_id,)))
    registry.add_image("app:1", config, [tar(*PLAIN)], layer_type=OCI_LAYER_TAR)
    put = begun()
    base = put.bench.image(f"{registry.address}/app:1")
    layer = put.bench.hold(put.backend.checkout(base, put.bench.activity, runs=False))
    assert put.names() == []
    with closing(layer.tree().open(b"a/b")) as stream:
        assert stream.read() == b"content"


# Any layers

_NAMES = st.sampled_from([b"a", b"b", b"a/a", b"a/b", b"b/a", b"a/a/a", b"a/b/c", b"c", b"b/a/c"])


@st.composite
def any_layers(draw: st.DrawFn) -> list[Layer]:
    return [draw(_any_layer(number)) for number in range(draw(st.integers(1, 4)))]


@st.composite
def _any_layer(draw: st.DrawFn, number: int) -> Layer:
    names = draw(st.lists(_NAMES, unique=True, max_size=6))
    # of hard links with different attributes, containerd takes those of the last
    mode, uid = draw(st.sampled_from([0o644, 0o4755, 0])), draw(st.sampled_from([0, 1, 70_000]))
    common = {"mode": mode, "uid": uid, "gid": uid, "mtime": number + 1}
    layer: list[Member | tuple[Member, bytes]] = []
    kinds = ["file", "folder", "folder", "link", "fifo", "device", "gone", "opaque"]
    # containerd's chown of a hard link takes capabilities away
    second = draw(st.sampled_from([(), CAPABILITY]))
    kinds += [] if second else ["hard"]
    for name in names:
        above, slash, last = name.rpartition(b"/")
        match draw(st.sampled_from(kinds)):
            case "file":
                attributes = draw(st.sampled_from([(), second, (("user.x", b"1"),)]))
                layer.append(file(name, draw(st.binary(max_size=3)), xattrs=attributes, **common))
            case "folder":
                mode = draw(st.sampled_from([0o755, 0o1700]))
                layer.append(member(name + b"/", FOLDER, **(common | {"mode": mode})))
            case "link":
                target = draw(st.sampled_from([b"a", b"/b", b"../c", b"none"]))
                layer.append(member(name, LINK, link=target, **common))
            case "hard":
                layer.append(member(name, HARD, link=draw(_NAMES), **common))
            case "fifo":
                layer.append(member(name, FIFO, **common))
            case "device":
                layer.append(member(name, CHARACTER, device=(1, 7), **common))
            case "gone":
                layer.append(member(above + slash + b".wh." + last))
            case _:
                layer.append(member(name + b"/", FOLDER, **common))
                layer.append(member(name + b"/.wh..wh..opq"))
    return layer


@pytest.fixture(scope="module")
def shared(
    containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sides]:
    with both(containerd, tmp_path_factory.mktemp("sides")) as made:
        yield made


def test_any_layer_that_comes_looks_the_same_on_disk(shared: Sides) -> None:
    seen = {"filled": 0}

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(_any_layer(0))
    def check(drawn: Layer) -> None:
        try:
            layer = shared.add(tar(file(b"always", b"1"), *drawn))
        except InvalidImage:
            return
        if shared.own.snapshots.exists(layer.diff_id):
            return
        arrive(shared.own, layer)
        seen["filled"] += bool(shared.own.left())
        try:
            shared.containerd.ensure([layer])
        except BackendError:
            shared.own.unpacker.close()
            return
        shared.own.ensure([layer])
        assert shared.own.left() == []
        assert shared.differences([layer]) == []

    check()
    assert seen["filled"] > 100


def test_any_layers_look_the_same_on_disk(shared: Sides) -> None:
    seen = {"filled": 0}

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(any_layers())
    def check(drawn: list[Layer]) -> None:
        layers: list[LayerDiff] = []
        for layer in drawn:
            try:
                added = shared.add(tar(*layer))
            except InvalidImage:
                return
            layers.append(added)
            before = shared.applied
            try:
                shared.containerd.ensure(layers)
            except BackendError:
                return  # it unpacks less than pybuild does
            shared.own.ensure(layers)
            seen["filled"] += shared.applied == before
            assert shared.differences(layers) == []

    check()
    assert seen["filled"] > 50
