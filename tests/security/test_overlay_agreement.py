"""Layers made from an upper folder mean what the kernel's own overlay shows."""

from __future__ import annotations

import io
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from pybuild.files.layertree import LayerTree
from pybuild.files.trees import Tree, walk
from pybuild.files.upperdir import upper_entries
from pybuild.oci.compression import Compression
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layertar import read_index
from pybuild.oci.layerwriter import write_layer

Seen = dict[str, tuple[int, int, int, int, bytes]]
_TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
}


@contextmanager
def mounted(target: Path, *arguments: str) -> Iterator[None]:
    try:
        subprocess.run(["mount", *arguments, str(target)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs root and mount")
    try:
        yield
    finally:
        subprocess.run(["umount", str(target)], check=True)


def on_disk(root: Path) -> Seen:
    seen: Seen = {}
    for path in root.rglob("*"):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content = b""
        if kind == stat.S_IFREG:
            content = path.read_bytes()
        elif kind == stat.S_IFLNK:
            content = os.fsencode(path.readlink())
        mode = 0 if kind == stat.S_IFLNK else stat.S_IMODE(status.st_mode)
        name = str(path.relative_to(root))
        seen[name] = (kind, mode, status.st_uid, status.st_gid, content)
    return seen


def in_tree(tree: Tree) -> Seen:
    seen: Seen = {}
    for entry in walk(tree, b""):
        if not entry.path:
            continue
        content = entry.link if entry.kind is Kind.SYMLINK else b""
        if entry.kind is Kind.FILE:
            content = tree.open(entry.path).read()
        mode = 0 if entry.kind is Kind.SYMLINK else entry.mode
        name = entry.path.decode()
        seen[name] = (_TYPES[entry.kind], mode, entry.uid, entry.gid, content)
    return seen


def change(root: Path, chance: random.Random) -> None:
    """A few things that a build step may do."""

    def folder() -> Path:
        folders = [p for p in root.rglob("*") if p.is_dir() and not p.is_symlink()]
        return chance.choice([root, *folders])

    def anything() -> Path:
        return chance.choice([*root.rglob("*")] or [root / "none"])

    def fresh() -> Path:
        return folder() / chance.choice("abcde")

    def write() -> None:
        path = fresh()
        if not os.path.lexists(path) or stat.S_ISREG(path.lstat().st_mode):
            path.write_text("x" * chance.randrange(9))

    def remove() -> None:
        path = anything()
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

    def chmod() -> None:
        path = anything()
        if not path.is_symlink():
            path.chmod(chance.choice([0o755, 0o700, 0o4755]))

    actions = [
        write,
        remove,
        chmod,
        lambda: fresh().mkdir(),
        lambda: fresh().symlink_to(chance.choice(["a", "../b", "/c"])),
        lambda: os.lchown(anything(), chance.randrange(3), chance.randrange(3)),
        lambda: anything().rename(fresh()),
        lambda: fresh().hardlink_to(anything()),
        lambda: os.mkfifo(fresh()),
    ]
    for _ in range(chance.randrange(3, 25)):
        with suppress(OSError):
            chance.choice(actions)()


def content_of(blobs: list[bytes], layer: int, entry: Entry, offset: int) -> io.BytesIO:
    return io.BytesIO(blobs[layer][offset : offset + entry.size])


@pytest.mark.root
@pytest.mark.parametrize("seed", range(6))
def test_random_changes_look_the_same_in_the_tree_and_in_the_mount(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    blobs: list[bytes] = []
    with mounted(tmp_path, "-t", "tmpfs", "tmpfs"):
        lowers = [tmp_path / "empty"]
        lowers[0].mkdir()
        tree = LayerTree((), partial(content_of, blobs))
        for number in range(4):
            upper, work, root = (tmp_path / f"{name}{number}" for name in ("up", "work", "root"))
            for path in (upper, work, root):
                path.mkdir()
            stack = ":".join(str(path) for path in reversed(lowers))
            options = f"index=off,lowerdir={stack},upperdir={upper},workdir={work}"
            with mounted(root, "-t", "overlay", "overlay", "-o", options):
                change(root, chance)
                expected = on_disk(root)
            out = io.BytesIO()
            layer = write_layer(upper_entries(upper, tree), out.write, Compression.NONE)
            blobs.append(out.getvalue())
            diff_id, index = read_index(io.BytesIO(blobs[-1]))
            assert (diff_id, index) == (layer.diff.diff_id, layer.index)
            tree = LayerTree((*tree.indexes, index), partial(content_of, blobs))
            assert in_tree(tree) == expected
            lowers.append(upper)
