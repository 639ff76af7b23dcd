"""A file system of a simulated process: a tree, mounts over it, and the changes made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from typing import BinaryIO

from pybuild.backend import (
    BindMount,
    CacheMount,
    Mount,
    SecretMount,
    SshMount,
    TmpfsMount,
    User,
)
from pybuild.errors import StepFailed
from pybuild.files.trees import MemoryTree, NewEntry, Tree, join, parent_of, resolve, shown, walk
from pybuild.oci.layerindex import Entry, Kind

_FILE = b"f"


class ReadOnly(Exception):
    """A write below a read-only mount."""


@dataclass(frozen=True, slots=True)
class _Mounted:
    target: bytes
    tree: Tree
    path: bytes
    readonly: bool
    cache: str | None = None
    """The id of a cache that is shown whole."""


class Scratchpad(Tree):
    """A tree that can be written. What is written below a mount is forgotten.

    A write without a parent folder raises FileNotFoundError.
    """

    def __init__(self, base: Tree, mounts: Sequence[Mount]) -> None:
        self._base = base
        self._mounts: list[_Mounted] = []
        self._new: dict[bytes, NewEntry] = {}
        self._removed: set[bytes] = set()
        self._points: set[bytes] = set()
        for mount in mounts:
            self._mounts.append(_mounted(mount, resolve(self, _raw(mount.target))))
        self._points |= {
            join(folder, name)
            for mounted in self._mounts
            for folder, name in _steps(mounted.target)
        }

    def get(self, path: bytes) -> Entry | None:
        if path in self._new:
            return self._linked(self._new[path])
        if self._hidden(path):
            return None
        tree, inner = self._source(path)
        entry = tree.get(inner)
        if entry is None and path in self._points:
            return Entry(path, Kind.DIRECTORY, 0o755)
        return None if entry is None else replace(entry, path=path)

    def _linked(self, new: NewEntry) -> Entry:
        entry = new.entry
        if entry.kind is Kind.FILE and entry.link:
            target = self.get(entry.link)
            if target is not None:
                return replace(target, path=entry.path, link=entry.link)
        return entry

    def children(self, path: bytes) -> Sequence[bytes]:
        tree, inner = self._source(path)
        names = {*tree.children(inner)} if not self._hidden(path) else set()
        names = {name for name in names if not self._hidden(join(path, name))}
        for other in (*self._new, *self._points):
            if other and parent_of(other) == path:
                names.add(other.rpartition(b"/")[2])
        return sorted(names)

    def open(self, path: bytes) -> BinaryIO:
        new = self._new.get(path)
        if new is not None and new.entry.link:
            return self.open(new.entry.link)
        if new is not None and new.content is not None:
            return new.content()
        tree, inner = self._source(path)
        return tree.open(inner)

    def read(self, path: bytes) -> bytes | None:
        """The content of a file, None where there is none."""
        entry = self.get(path)
        if entry is None or entry.kind is not Kind.FILE:
            return None
        with self.open(path) as stream:
            return stream.read()

    def write(self, path: bytes, content: bytes, user: User) -> None:
        """Make or overwrite a file; an old one keeps its owner and mode."""
        old = self.get(path)
        if old is not None and old.kind is Kind.DIRECTORY:
            raise IsADirectoryError(f"{shown(path)}: Is a directory")
        entry = old or Entry(path, Kind.FILE, 0o644, user.uid, user.gid)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        entry = replace(entry, size=len(content), digest=digest, link=b"")
        self.add(entry, content)

    def make_folder(self, path: bytes, user: User) -> None:
        self.add(Entry(path, Kind.DIRECTORY, 0o755, user.uid, user.gid))

    def hard_link(self, target: bytes, path: bytes) -> None:
        """A second name of the file `target`, which becomes part of the changes itself."""
        entry = self.get(target)
        if entry is None:
            raise FileNotFoundError(f"{shown(target)}: No such file or directory")
        self.add(entry, self.read(target))
        self.add(replace(entry, path=path, link=target))

    def change(
        self,
        path: bytes,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
    ) -> None:
        """Give what is at `path` another mode or owner."""
        entry = self.get(path)
        if entry is None:
            raise FileNotFoundError(f"{shown(path)}: No such file or directory")
        entry = replace(
            entry,
            mode=entry.mode if mode is None else mode,
            uid=entry.uid if uid is None else uid,
            gid=entry.gid if gid is None else gid,
        )
        self.add(entry, self.read(path))

    def add(self, entry: Entry, content: bytes | None = None) -> None:
        folder = self.get(parent_of(entry.path))
        if parent_of(entry.path) and (folder is None or folder.kind is not Kind.DIRECTORY):
            raise FileNotFoundError(f"{shown(entry.path)}: No such file or directory")
        self._check_writable(entry.path)
        is_content = entry.kind is Kind.FILE and not entry.link
        opener = partial(BytesIO, content or b"") if is_content else None
        self._new[entry.path] = NewEntry(entry, opener)

    def remove(self, path: bytes) -> None:
        """Remove what is at `path` and all below."""
        self._check_writable(path)
        for other in [p for p in self._new if _is_below(p, path)]:
            del self._new[other]
        self._removed.add(path)

    def changes(self) -> tuple[NewEntry, ...]:
        """What the process leaves in its layer."""
        kept = [new for path, new in self._new.items() if self._mounted(path) is None]
        for path in self._removed:
            if self._mounted(path) is not None or self._base.get(path) is None:
                continue
            if any(_is_below(path, other) for other in self._removed - {path}):
                continue
            again = self._new.get(path)
            if again is None:
                kept.append(NewEntry(Entry(path, Kind.WHITEOUT)))
            elif again.entry.kind is Kind.DIRECTORY:
                kept.append(NewEntry(Entry(path, Kind.OPAQUE)))
        return tuple(sorted(kept, key=lambda new: new.entry.path))

    def caches(self) -> dict[str, tuple[NewEntry, ...]]:
        """All files of the cache mounts as they are now, by the mounts' ids."""
        return {
            mounted.cache: tuple(self._copied(mounted.target))
            for mounted in self._mounts
            if mounted.cache is not None and not mounted.readonly
        }

    def _copied(self, folder: bytes) -> Iterator[NewEntry]:
        for entry in walk(self, folder):
            moved = replace(entry, path=entry.path[len(folder) :].lstrip(b"/"), link=entry.link)
            if entry.kind is not Kind.FILE:
                yield NewEntry(moved)
                continue
            content = self.read(entry.path) or b""
            yield NewEntry(replace(moved, link=b""), partial(BytesIO, content))

    def _check_writable(self, path: bytes) -> None:
        mounted = self._mounted(path)
        if mounted is not None and mounted.readonly:
            raise ReadOnly(f"{shown(path)}: Read-only file system")

    def _hidden(self, path: bytes) -> bool:
        return any(_is_below(path, removed) for removed in self._removed)

    def _mounted(self, path: bytes) -> _Mounted | None:
        over = [mounted for mounted in self._mounts if _is_below(path, mounted.target)]
        return max(over, key=lambda mounted: len(mounted.target), default=None)

    def _source(self, path: bytes) -> tuple[Tree, bytes]:
        """The tree that shows what is at `path`, and its path in there."""
        mounted = self._mounted(path)
        if mounted is None:
            return self._base, path
        inner = path[len(mounted.target) :].lstrip(b"/")
        if not inner:
            return mounted.tree, mounted.path
        return mounted.tree, join(mounted.path, inner)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _mounted(mount: Mount, target: bytes) -> _Mounted:
    match mount:
        case BindMount():
            return _Mounted(target, mount.tree, mount.path, mount.readonly)
        case TmpfsMount():
            return _Mounted(target, MemoryTree([]), b"", readonly=False)
        case CacheMount(tree=tree, path=path, inside=inside):
            assert tree is not None, "the backend finds the files of a cache"
            shown = join(path, inside) if inside else path
            if tree.get(shown) is None:
                raise StepFailed(f"there is no folder {inside!r} in the cache {mount.ident}")
            cache = None if inside else mount.ident
            return _Mounted(target, tree, shown, mount.readonly, cache)
        case SecretMount():
            entry = Entry(
                _FILE, Kind.FILE, mount.mode, mount.uid, mount.gid, size=len(mount.content)
            )
            files = MemoryTree([NewEntry(entry, partial(BytesIO, mount.content))])
            return _Mounted(target, files, _FILE, readonly=True)
        case SshMount():
            entry = Entry(_FILE, Kind.SOCKET, mount.mode, mount.uid, mount.gid)
            return _Mounted(target, MemoryTree([NewEntry(entry)]), _FILE, readonly=True)


def _is_below(path: bytes, folder: bytes) -> bool:
    return path == folder or not folder or path.startswith(folder + b"/")


def _steps(path: bytes) -> list[tuple[bytes, bytes]]:
    """The folders on the way to `path`, as pairs of parent and name."""
    parts = path.split(b"/")
    return [(b"/".join(parts[:depth]), part) for depth, part in enumerate(parts)]
