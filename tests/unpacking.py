"""Layers as tars, unpacked by workers, and what a process sees when they are mounted."""

from __future__ import annotations

import io
import os
import random
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pybuild.files.layertree import LayerTree
from pybuild.files.trees import Tree, walk
from pybuild.oci.compression import Compression, detect
from pybuild.oci.layerindex import Entry, Kind, LayerIndex
from pybuild.oci.layertar import read_index
from pybuild.oci.tarformat import Member, header
from pybuild.sandbox.client import Sandbox
from pybuild.sandbox.mapping import Kind as MappingKind
from pybuild.sandbox.mapping import Mapping
from pybuild.sandbox.spec import Bind, Overlay, Plain, Root, RunSpec
from pybuild_embedded.workers import Apply, Merge, Pack, Packed, Unpack, Workers
from sandboxing import best_mapping, empty

FILE, HARD, LINK, CHARACTER, BLOCK, FOLDER, FIFO = (ord(c) for c in "0123456")
END = bytes(1024)
TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
}
_SYSTEM = frozenset({"dev", "proc", "sys", ".probe"})
_LOOK = r"""
cd /
b=/.probe/busybox
$b find . -xdev -exec $b stat -c 'status|%n|%f|%u|%g|%Y|%i' {} +
$b find . -xdev -type f -exec $b sha256sum {} +
$b find . -xdev -type l -exec $b sh -c \
    'for f; do printf "link|%s|" "$f"; /.probe/busybox readlink "$f"; done' sh {} +
"""


@dataclass(frozen=True)
class Shown:
    """A file as a process sees it, or as a tree says it looks."""

    type: int
    mode: int
    uid: int
    gid: int
    mtime: int
    content: str


@dataclass
class Layer:
    """A layer in files, and its folder if it has been unpacked."""

    index: LayerIndex
    diff_id: str
    blob: Path
    index_file: Path
    folder: Path


@dataclass
class Layers:
    """A chain of layers in `folder`, bottom first, unpacked in a sandbox."""

    sandbox: Sandbox
    workers: Workers
    folder: Path
    probe: Path
    chain: list[Layer] = field(default_factory=list)
    count: int = 0

    @property
    def userxattr(self) -> bool:
        return self.sandbox.mapping.userxattr

    @property
    def owners(self) -> bool:
        return self.sandbox.mapping.kind is not MappingKind.SINGLE

    def anew(self) -> Layers:
        """Another empty chain in the same sandbox."""
        folder = self.fresh("chain")
        folder.mkdir()
        return Layers(self.sandbox, self.workers, folder, self.probe)

    def fresh(self, name: str) -> Path:
        self.count += 1
        return self.folder / f"{name}-{self.count}"

    def write(self, blob: bytes) -> Layer:
        """A layer that isn't unpacked. Raises InvalidImage as `read_index` does."""
        diff_id, index = read_index(io.BytesIO(blob))
        layer = Layer(index, diff_id, self.fresh("blob"), self.fresh("index"), self.fresh("layer"))
        layer.blob.write_bytes(blob)
        layer.index_file.write_bytes(index.to_bytes())
        layer.folder.mkdir()
        return layer

    def unpack(self, layer: Layer) -> int:
        """Unpack a layer onto the chain, which is longer by it then."""
        size = self.workers.unpack(
            Unpack(
                blob=layer.blob,
                diff_id=layer.diff_id,
                index=layer.index_file,
                parents=tuple(each.index_file for each in self.chain),
                lowers=tuple(each.folder for each in self.chain),
                target=layer.folder,
                userxattr=self.userxattr,
                owners=self.owners,
                # both ways in turn
                plain=layer.blob if len(self.chain) % 2 and _is_plain(layer.blob) else None,
            )
        )
        self.chain.append(layer)
        return size

    def add(self, *members: Member | tuple[Member, bytes]) -> Layer:
        layer = self.write(tar(*members))
        self.unpack(layer)
        return layer

    def tree(self) -> LayerTree:
        def opened(position: int, entry: Entry, offset: int) -> io.BytesIO:
            content = self.chain[position].blob.read_bytes()
            return io.BytesIO(content[offset : offset + entry.size])

        return LayerTree([layer.index for layer in self.chain], opened)

    def merged(self) -> Path:
        target = self.fresh("merged")
        target.mkdir()
        indexes = tuple(layer.index_file for layer in self.chain)
        folders = tuple(layer.folder for layer in self.chain)
        self.workers.merge(Merge(indexes, folders, target, self.owners))
        return target

    def run(self, *args: str, lowers: Sequence[Path] | None = None) -> tuple[Path, str]:
        """Run a program of /.probe/busybox: its upper folder, and what it wrote."""
        upper, work = self.fresh("upper"), self.fresh("work")
        for path in (upper, work):
            path.mkdir()
        chain = [layer.folder for layer in self.chain] if lowers is None else lowers
        root = Overlay(
            tuple(os.fsencode(path) for path in reversed(chain)),
            os.fsencode(upper),
            os.fsencode(work),
        )
        return upper, self._run_on(root, args)

    def _run_on(self, root: Root, args: Sequence[str]) -> str:
        seen = {1: bytearray(), 2: bytearray()}

        def keep(stream: int, piece: bytes) -> None:
            seen[stream] += piece

        mounts = (Bind("/.probe", os.fsencode(self.probe)),)
        spec = RunSpec(root, ("/.probe/busybox", *args), mounts=mounts)
        code = self.sandbox.run(spec, keep)
        assert code == 0, bytes(seen[2][-500:])
        return seen[1].decode()

    def apply_to(self, copy: Path, count: int) -> None:
        """Apply the layer at this place of the chain to a folder that shows those below it."""
        layer, stage = self.chain[count], self.fresh("stage")
        stage.mkdir()
        self.workers.apply(
            Apply(
                blob=layer.blob,
                diff_id=layer.diff_id,
                index=layer.index_file,
                parents=tuple(each.index_file for each in self.chain[:count]),
                target=copy,
                stage=stage,
                devices=not self.userxattr,
                owners=self.owners,
            )
        )
        assert not list(stage.iterdir())
        stage.rmdir()

    def laid_out(self) -> Path:
        """A plain folder that shows the chain."""
        copy = self.fresh("copy")
        copy.mkdir()
        for count in range(len(self.chain)):
            self.apply_to(copy, count)
        return copy

    def run_in(self, copy: Path, *args: str, newest: int | None = None) -> Packed | None:
        """Run a program in a folder that shows the chain, and pack what it changed."""
        record = self.fresh("record")
        points = [(name, True) for name in (b"proc", b"sys", b"dev", b".probe")]
        remove_points = self.workers.make_points(copy, points)
        self.workers.record(copy, record)
        self._run_on(Plain(os.fsencode(copy)), args)
        remove_points()
        return self.pack(copy, newest=newest, record=record)

    def shown(
        self, lowers: Sequence[Path] | None = None
    ) -> tuple[dict[str, Shown], dict[str, int]]:
        """What a process sees on the chain, and the inodes, by path."""
        _, text = self.run("sh", "-c", _LOOK, lowers=lowers)
        contents: dict[str, str] = {}
        statuses: list[list[str]] = []
        for line in text.splitlines():
            if line.startswith("status|"):
                statuses.append(line.split("|")[1:])
            elif line.startswith("link|"):
                _, name, target = line.split("|")
                contents[name] = target
            else:
                digest, name = line.split("  ", 1)
                contents[name] = f"sha256:{digest}"
        found: dict[str, Shown] = {}
        inodes: dict[str, int] = {}
        for name, raw, uid, gid, mtime, inode in statuses:
            path = name.removeprefix("./")
            if path == "." or path.partition("/")[0] in _SYSTEM:
                continue
            kind, mode = stat.S_IFMT(int(raw, 16)), stat.S_IMODE(int(raw, 16))
            owner = (int(uid), int(gid)) if self.owners else (0, 0)
            mode = 0 if kind == stat.S_IFLNK else mode
            found[path] = Shown(kind, mode, *owner, int(mtime), contents.get(name, ""))
            inodes[path] = int(inode)
        return found, inodes

    def pack(
        self,
        upper: Path,
        *,
        newest: int | None = None,
        fuse: bool = False,
        record: Path | None = None,
    ) -> Packed | None:
        """Write a layer onto the chain, whose folder is `upper`; the chain is longer by it then."""
        blob, index = self.fresh("blob"), self.fresh("index")
        request = Pack(
            upper=upper,
            parents=tuple(layer.index_file for layer in self.chain),
            blob=blob,
            index=index,
            newest=newest,
            owners=self.owners,
            compression=Compression.NONE,
            fuse=fuse,
            record=record,
        )
        packed = self.workers.pack(request).result()
        if packed is None:
            assert not blob.exists()
            assert not index.exists()
            return None
        found = LayerIndex.from_bytes(index.read_bytes())
        assert read_index(io.BytesIO(blob.read_bytes())) == (packed.diff.diff_id, found)
        self.chain.append(Layer(found, packed.diff.diff_id, blob, index, upper))
        return packed


def in_tree(tree: Tree, *, owners: bool) -> dict[str, Shown]:
    """What a tree says, in the terms of `Layers.shown`."""
    seen: dict[str, Shown] = {}
    for entry in walk(tree, b""):
        name = entry.path.decode()
        if name.partition("/")[0] in _SYSTEM | {""}:
            continue
        content = entry.link.decode() if entry.kind is Kind.SYMLINK else entry.digest or ""
        mode = 0 if entry.kind is Kind.SYMLINK else entry.mode
        owner = (entry.uid, entry.gid) if owners else (0, 0)
        seen[name] = Shown(TYPES[entry.kind], mode, *owner, entry.mtime, content)
    return seen


def agrees(layers: Layers, folder: Path | None = None) -> None:
    """The chain, or a `folder` that shows it, looks to a process as its tree says; times of folders only copied up don't count."""

    def timeless(shown: dict[str, Shown]) -> dict[str, Shown]:
        return {path: replace(each, mtime=0) for path, each in shown.items()}

    seen, _ = layers.shown(folder and [folder])
    assert timeless(seen) == timeless(in_tree(layers.tree(), owners=layers.owners))


def random_script(chance: random.Random, *, links: bool = True) -> str:
    """A few things that a step may do; without `links`, no file gets a second name."""

    def name() -> str:
        return "/".join(chance.choice("abc") for _ in range(chance.randrange(1, 4)))

    actions = [
        lambda: f"echo {chance.randrange(99)} >n && $b mv n {name()}",  # a FIFO would wait
        lambda: f"$b rm -rf {name()}",
        lambda: f"$b mkdir -p {name()}",
        lambda: f"$b mv {name()} {name()}",
        lambda: f"$b ln -s {chance.choice(['a', '../b', '/c'])} {name()}",
        lambda: f"$b chmod {chance.choice(['755', '700', '4755', '0'])} {name()}",
        lambda: f"$b chown -h {chance.randrange(3)}:{chance.randrange(3)} {name()}",
        lambda: f"$b mkfifo {name()}",
        lambda: f"$b touch -h -d @{chance.randrange(10**6)} {name()}",
    ]
    if links:
        actions.append(lambda: f"$b ln {name()} {name()}")
    lines = [chance.choice(actions)() for _ in range(chance.randrange(5, 40))]
    return "{ " + "; ".join(lines) + "; } 2>/dev/null; true"


def member(name: bytes, kind: int = FILE, **fields: object) -> Member:
    return Member(name, kind, **fields)  # type: ignore[arg-type]


def file(name: bytes, content: bytes, **fields: object) -> tuple[Member, bytes]:
    return member(name, FILE, size=len(content), **fields), content


def tar(*members: Member | tuple[Member, bytes]) -> bytes:
    parts = []
    for each in members:
        head, content = (each, b"") if isinstance(each, Member) else each
        parts.append(header(head) + content + bytes(-len(content) % 512))
    return b"".join(parts) + END


@contextmanager
def layers_in(folder: Path, mapping: Mapping | None = None) -> Iterator[Layers]:
    """An empty chain under the best mapping of this user. The folder is emptied at the end."""
    busybox = shutil.which("busybox", path="/bin:/usr/bin")
    if busybox is None:
        pytest.skip("needs busybox")
    mapping = mapping or best_mapping(folder)
    (folder / "probe").mkdir()
    shutil.copy(busybox, folder / "probe/busybox")
    try:
        with Sandbox(mapping) as sandbox, Workers(sandbox, most=1) as workers:
            yield Layers(sandbox, workers, folder, folder / "probe")
    finally:
        empty(mapping, folder)


def _is_plain(blob: Path) -> bool:
    with blob.open("rb") as stream:
        return detect(stream.read(6)) is None
