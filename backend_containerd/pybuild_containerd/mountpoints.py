"""Where mounts go in a root file system, and the stubs that a layer must not keep.

A runtime makes a missing mount point before it mounts, in the layer. So everything that a
process needs to be there is known beforehand: targets are resolved against the layer's
tree, and what is missing is listed, to be shown from below (see :mod:`.runmounts`) or to be
left out of the layer's diff.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from pybuild.errors import PybuildError, StepFailed
from pybuild.files import trees
from pybuild.files.trees import Tree
from pybuild.oci.layerindex import Entry, Kind
from pybuild.values import dataclass
from pybuild_containerd.mountedtree import MountedTree

_SYSTEM = (b"proc", b"dev", b"sys")
_CLOSED = (b"proc", b"sys")
# runtimes make these, and use them when they hide parts of /proc (CVE-2025-31133)
_RUNTIMES_OWN = frozenset(
    b"console core fd full mqueue null ptmx pts random stderr stdin stdout tty urandom zero".split()
)


@dataclass(frozen=True, slots=True)
class Stub:
    """What has to be at a mount point: a folder or a file, and its mode if it is missing."""

    kind: Kind
    mode: int


FOLDER = Stub(Kind.DIRECTORY, 0o755)
ANYONES_FOLDER = Stub(Kind.DIRECTORY, 0o1777)
PLAIN_FILE = Stub(Kind.FILE, 0o644)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A mount: where to, an absolute path, and what: `top` of `source`, or something empty."""

    target: str
    stub: Stub
    source: Tree | None = None
    top: bytes = b""


@dataclass(frozen=True, slots=True)
class Mountpoint:
    """A resolved place: ``path`` relative to the root, and what has to be there."""

    path: bytes
    stub: Stub

    @property
    def destination(self) -> str:
        """As the runtime specification wants it: absolute."""
        return "/" + os.fsdecode(self.path)


SYSTEM_MOUNTPOINTS = tuple(Mountpoint(path, FOLDER) for path in _SYSTEM)


def check_system_mountpoints(tree: Tree) -> None:
    """Raise StepFailed if /proc, /dev or /sys of the image is anything but a folder."""
    for path in _SYSTEM:
        entry = tree.get(path)
        if entry is not None and entry.kind is not Kind.DIRECTORY:
            raise StepFailed(
                f"/{path.decode()} of the image is no folder, so that nothing can run in it"
            )


def resolve_mountpoints(tree: Tree, wanted: Sequence[Wanted]) -> list[Mountpoint]:
    """Where each mount lands in `tree`, in the order given.

    Links count as they will when the mount is made, those of other mounts as well. Raises
    StepFailed where nothing can be mounted.
    """
    view = mounted_tree(tree, (), ())
    resolved: dict[int, Mountpoint] = {}
    for number in sorted(range(len(wanted)), key=lambda n: _clean(wanted[n].target).count("/")):
        mount = wanted[number]
        path = _resolve(view, _clean(mount.target), mount.stub)
        if _is_closed(path):
            raise StepFailed(f"nothing can be mounted at {mount.target}")
        resolved[number] = Mountpoint(path, mount.stub)
        view.mount(path, mount.stub.kind, mount.source, mount.top)
    points = [resolved[number] for number in range(len(wanted))]
    view = mounted_tree(tree, wanted, points)
    for mount, point in zip(wanted, points, strict=True):
        # another mount has put a link in its way, which a runtime would follow anywhere
        if _resolve(view, point.destination, point.stub) != point.path:
            raise StepFailed(f"the mount at {mount.target} goes through a link of another mount")
    return points


def mounted_tree(tree: Tree, wanted: Sequence[Wanted], points: Sequence[Mountpoint]) -> MountedTree:
    """What a process sees once all mounts are made, outer ones first."""
    view = MountedTree(tree)
    for system in SYSTEM_MOUNTPOINTS:
        view.mount(system.path, system.stub.kind)
    for mount, point in sorted(zip(wanted, points, strict=True), key=lambda pair: depth(pair[1])):
        view.mount(point.path, mount.stub.kind, mount.source, mount.top)
    return view


def depth(point: Mountpoint) -> int:
    """How deep a mount point lies: the order to make mounts in."""
    return point.path.count(b"/")


def _is_closed(path: bytes) -> bool:
    first, _, rest = path.partition(b"/")
    if first == b"dev":
        return not rest or rest.split(b"/")[0] in _RUNTIMES_OWN
    return not path or first in _CLOSED


def resolve_cwd(tree: Tree, cwd: str) -> None:
    """Raise StepFailed if the working directory leads into /proc or the devices of /dev.

    There, links lead to files that the runtime itself has open (CVE-2024-21626). A ``..``
    is followed as the kernel does, after the link before it.
    """
    try:
        path = trees.resolve(tree, os.fsencode(cwd))
    except PybuildError as error:
        raise StepFailed(
            f"the working directory {cwd} can't be resolved: {error.message}"
        ) from error
    first, _, rest = path.partition(b"/")
    if first == b"proc" or (first == b"dev" and rest.split(b"/")[0] != b"shm"):
        raise StepFailed(f"the working directory {cwd} is inside /{first.decode()}")
    entry = tree.get(path)
    if entry is not None and entry.kind is not Kind.DIRECTORY:
        raise StepFailed(f"the working directory {cwd} is no folder")


def missing_entries(tree: Tree, points: Iterable[Mountpoint]) -> tuple[Entry, ...]:
    """What `tree` lacks of these mount points and their parents, sorted, parents first.

    Points inside another point are left out: they are made in what is mounted there.
    """
    chosen = sorted(points, key=lambda p: p.path)
    folders = {p.path for p in chosen if p.stub.kind is Kind.DIRECTORY}
    found: dict[bytes, Entry] = {}
    for point in chosen:
        parents = list(_parents(point.path))
        if any(parent in folders for parent in parents):
            continue
        for parent in parents:
            if tree.get(parent) is None:
                found[parent] = Entry(parent, Kind.DIRECTORY, 0o755)
        if tree.get(point.path) is None:
            found[point.path] = Entry(point.path, point.stub.kind, point.stub.mode)
    return tuple(found[path] for path in sorted(found))


def untouched_stubs(upper: Path, missing: Sequence[Entry]) -> frozenset[bytes]:
    """Which of the `missing` entries the runtime left in an upper folder, still empty."""
    stubs: set[bytes] = set()
    for entry in sorted(missing, key=lambda e: e.path, reverse=True):
        status = _lstat_below(upper, entry.path)
        if status is None:
            continue
        if entry.kind is Kind.DIRECTORY:
            if stat.S_ISDIR(status.st_mode):
                here = os.fsencode(upper) + b"/" + entry.path
                names = {entry.path + b"/" + name for name in os.listdir(here)}  # noqa: PTH208 - bytes
                if names <= stubs:
                    stubs.add(entry.path)
        elif stat.S_ISREG(status.st_mode) and status.st_size == 0:
            stubs.add(entry.path)
    return frozenset(stubs)


def _lstat_below(root: Path, path: bytes) -> os.stat_result | None:
    """Status of `path` below `root`, None where it is missing or reached through a link."""
    here = os.fsencode(root)
    status = None
    for name in path.split(b"/"):
        if status is not None and not stat.S_ISDIR(status.st_mode):
            return None
        here += b"/" + name
        try:
            status = os.lstat(here)
        except OSError:
            return None
    return status


def _resolve(tree: Tree, target: str, stub: Stub) -> bytes:
    try:
        path = trees.resolve(tree, os.fsencode(target.lstrip("/")))
    except PybuildError as error:
        raise StepFailed(f"the mount target {target} can't be resolved: {error.message}") from error
    for parent in _parents(path):
        entry = tree.get(parent)
        if entry is not None and entry.kind is not Kind.DIRECTORY:
            raise StepFailed(
                f"{target} can't be a mount target: /{os.fsdecode(parent)} is no folder"
            )
    entry = tree.get(path)
    if path and entry is not None and _is_folder(entry) != _is_folder(stub):
        raise StepFailed(f"a {stub.kind.value} can't be mounted on the {entry.kind.value} {target}")
    return path


def _is_folder(thing: Entry | Stub) -> bool:
    return thing.kind is Kind.DIRECTORY


def _clean(target: str) -> str:
    # "//" at the start survives normpath
    return posixpath.normpath("/" + target.lstrip("/"))


def _parents(path: bytes) -> Iterable[bytes]:
    parts = path.split(b"/")
    return (b"/".join(parts[:count]) for count in range(1, len(parts)))
