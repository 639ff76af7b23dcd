"""The Tree interface: a file system that can be read without being mounted.

A tree is a build context, an image, a stage, or a few files in memory. The COPY rules,
USER lookup and mount sources are written once against it. Paths are raw bytes relative to
the tree's root, without a leading slash; the root is ``b""``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from typing import BinaryIO

from pybuild.errors import CopyFailed
from pybuild.oci.layerindex import Entry, Kind
from pybuild.values import dataclass, replace

_MAX_LINKS = 40
"""Symlinks followed in one path, Linux's own limit (path_resolution(7))."""

_MAX_PATH = 64 * 1024


class LinkLoop(CopyFailed):
    """A path leads through too many symlinks."""


class NotAFolder(CopyFailed):
    """A path leads through something that is no folder."""


class Tree(ABC):
    """A read-only file system. Safe to use from several threads."""

    @abstractmethod
    def get(self, path: bytes) -> Entry | None:
        """The entry at exactly `path`, following no symlink anywhere; None if there is none.

        A parent that is a symlink is not followed either: use :func:`resolve` first.
        """

    @abstractmethod
    def children(self, path: bytes) -> Sequence[bytes]:
        """The names directly below the folder `path`, sorted; empty if it is no folder."""

    def listed(self, path: bytes) -> Iterable[tuple[bytes, Entry]]:
        """What is directly below the folder `path`: names, sorted, and the entries there."""
        for name in self.children(path):
            entry = self.get(join(path, name))
            if entry is not None:
                yield name, entry

    @abstractmethod
    def open(self, path: bytes) -> BinaryIO:
        """The content of the regular file at exactly `path`. The caller closes it.

        Reading past what :meth:`get` gave as its size, or short of it, raises
        :class:`~pybuild.errors.ContextError`: the file changed meanwhile.
        """


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An entry to be put into a layer. ``content`` opens a FILE's bytes, ``entry.size`` long.

    It is None for everything else, and for hard links. Who computes the digest of all that it
    gives calls its ``on_digest``, if it has one, with that. ``source`` is the path that it was copied
    from, None for what was made.
    """

    entry: Entry
    content: Callable[[], BinaryIO] | None = None
    source: bytes | None = None


def shown(path: bytes) -> str:
    """`path` for a message: as text, what can't be printed escaped; the root is ``/``."""
    text = path.decode("utf-8", "backslashreplace") or "/"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def join(folder: bytes, name: bytes) -> bytes:
    """The path of `name` in `folder`."""
    return folder + b"/" + name if folder else name


def parent_of(path: bytes) -> bytes:
    """The folder that `path` is in; the root's is the root."""
    return path.rpartition(b"/")[0]


def resolve(tree: Tree, path: bytes, *, follow_last: bool = True) -> bytes:
    """`path` without symlinks, ``.`` and ``..``, as if the tree's root were ``/``.

    Absolute links start at the root and ``..`` stops there, so the result never leaves the
    tree. From the first component that doesn't exist on, the rest is kept as written. With
    `follow_last` False a symlink at the end stays. A leading or trailing slash is ignored.
    Raises LinkLoop, NotAFolder, and CopyFailed for what is no path.
    """
    if b"\0" in path or len(path) > _MAX_PATH:
        raise CopyFailed(f"{shown(path[:200])} is not a valid path")
    todo = _components(path)
    done: list[bytes] = []
    here = b""
    links = 0
    missing = False
    while todo:
        name = todo.pop()
        if name == b"..":
            if done:
                done.pop()
            here = b"/".join(done)
            missing = missing and bool(done) and tree.get(here) is None
            continue
        there = join(here, name)
        entry = None if missing else tree.get(there)
        if entry is not None and entry.kind is Kind.SYMLINK and (todo or follow_last):
            links += 1
            if links > _MAX_LINKS or len(entry.link) > _MAX_PATH:
                raise LinkLoop(f"too many levels of symbolic links in {shown(path)}")
            if entry.link.startswith(b"/"):
                done, here = [], b""
            todo.extend(_components(entry.link))
            continue
        if entry is None:
            missing = True
        elif todo and entry.kind is not Kind.DIRECTORY:
            raise NotAFolder(f"{shown(there)} is not a directory")
        done.append(name)
        here = there
    return here


def _components(path: bytes) -> list[bytes]:
    """The parts of `path`, last first, without empty ones and ``.``."""
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]


def walk(tree: Tree, path: bytes) -> Iterator[Entry]:
    """The entry at `path` and all below it: parents first, names sorted. Follows no link.

    Yields nothing if there is no such entry. The root is yielded only if it has an entry.
    """
    top = tree.get(path)
    if top is not None:
        yield top
    elif path:
        return
    pending = [iter([join(path, name) for name in tree.children(path)])]
    while pending:
        below = next(pending[-1], None)
        if below is None:
            pending.pop()
            continue
        entry = tree.get(below)
        if entry is None:
            continue
        yield entry
        if entry.kind is Kind.DIRECTORY:
            pending.append(iter([join(below, name) for name in tree.children(below)]))


class MemoryTree(Tree):
    """A tree made of given entries. Missing parents are folders, 0755 and root's.

    Of several entries with one path the last counts. A hard link has the size and content
    of the entry it names.
    """

    def __init__(self, entries: Iterable[NewEntry]) -> None:
        self._entries: dict[bytes, NewEntry] = {
            b"": NewEntry(Entry(b"", Kind.DIRECTORY, mode=0o755))
        }
        names: dict[bytes, set[bytes]] = {}
        for new in entries:
            self._entries[new.entry.path] = new
        for path in list(self._entries):
            child = path
            while child:
                folder, _, name = child.rpartition(b"/")
                siblings = names.setdefault(folder, set())
                if name in siblings:
                    break
                siblings.add(name)
                if folder not in self._entries:
                    self._entries[folder] = NewEntry(Entry(folder, Kind.DIRECTORY, mode=0o755))
                child = folder
        self._children = {folder: tuple(sorted(found)) for folder, found in names.items()}

    def get(self, path: bytes) -> Entry | None:
        new = self._entries.get(path)
        if new is None:
            return None
        if new.entry.kind is Kind.FILE and new.entry.link:
            target = self._entries.get(new.entry.link)
            if target is not None and target.entry.kind is Kind.FILE:
                return replace(target.entry, path=path, link=new.entry.link)
        return new.entry

    def children(self, path: bytes) -> Sequence[bytes]:
        entry = self.get(path)
        if entry is None or entry.kind is not Kind.DIRECTORY:
            return ()
        return self._children.get(path, ())

    def open(self, path: bytes) -> BinaryIO:
        new = self._entries.get(path)
        if new is not None and new.entry.link:
            new = self._entries.get(new.entry.link)
        if new is None or new.entry.kind is not Kind.FILE:
            raise CopyFailed(f"{shown(path)} is not a regular file")
        return BytesIO() if new.content is None else new.content()
