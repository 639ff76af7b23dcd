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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pybuild.errors import PybuildError, StepFailed
from pybuild.files import trees
from pybuild.files.trees import Tree
from pybuild.oci.layerindex import Entry, Kind

_SYSTEM = (b"proc", b"dev", b"sys")
_CLOSED = (b"proc", b"sys")


@dataclass(frozen=True, slots=True)
class Stub:
    """What has to be at a mount point: a folder or a file, and its mode if it is missing."""

    kind: Kind
    mode: int


FOLDER = Stub(Kind.DIRECTORY, 0o755)
ANYONES_FOLDER = Stub(Kind.DIRECTORY, 0o1777)
PLAIN_FILE = Stub(Kind.FILE, 0o644)


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


def resolve_mountpoints(tree: Tree, targets: Sequence[tuple[str, Stub]]) -> list[Mountpoint]:
    """Where each target, an absolute path, lands in `tree`, in the order given.

    A target below another target is inside what is mounted there, so the tree's links
    don't count for it. Raises StepFailed where nothing can be mounted.
    """
    resolved: dict[str, Mountpoint] = {}
    for target, stub in sorted(targets, key=lambda t: _clean(t[0]).count("/")):
        cleaned = _clean(target)
        outer = _outermost(cleaned, resolved)
        if outer is None:
            path = _resolve(tree, cleaned, stub)
        else:
            path = resolved[outer].path + os.fsencode(cleaned[len(outer) :])
        if path == b"" or path.split(b"/")[0] in _CLOSED:
            raise StepFailed(f"nothing can be mounted at {target}")
        resolved[cleaned] = Mountpoint(path, stub)
    return [Mountpoint(resolved[_clean(target)].path, stub) for target, stub in targets]


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


def _outermost(target: str, resolved: Mapping[str, Mountpoint]) -> str | None:
    """The deepest resolved target that `target` lies below."""
    above = [known for known in resolved if target.startswith(known + "/")]
    return max(above, key=len, default=None)


def _parents(path: bytes) -> Iterable[bytes]:
    parts = path.split(b"/")
    return (b"/".join(parts[:count]) for count in range(1, len(parts)))
