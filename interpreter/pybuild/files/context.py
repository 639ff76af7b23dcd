"""The build context as a tree: a folder, or a tar that is read from a stream.

Files of a context belong to root whatever their owner here; their modes, times (whole
seconds) and links are theirs. Nothing is followed out of the context, and a tar is never
unpacked: its entries are indexed, and their content served from a temporary file.
"""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from pybuild.errors import ContextError, InvalidImage, PybuildError
from pybuild.files.ignore import IgnoreMatcher
from pybuild.files.safepath import AwaitsDigest, Listed, Root, Scanned
from pybuild.files.statcache import StatCache, StatDigest, stat_digest
from pybuild.files.trees import Tree, join, parent_of, resolve, shown
from pybuild.oci.layerindex import Entry, Kind
from pybuild.values import replace

if TYPE_CHECKING:
    from pybuild.files.archives import ArchiveTree
    from pybuild.files.spool import Spool
    from pybuild.oci.tarformat import Limits

_IS_WINDOWS = os.name == "nt"
_MAX_TEXT = 16 * 1024 * 1024
_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}


class ContextTree(Tree):
    """A tree that holds something open; a context manager over `close`."""

    @abstractmethod
    def close(self) -> None:
        """Idempotent. Nothing of the tree can be opened afterwards."""

    def keep_digests_in(self, folder: Path) -> None:
        """Take digests of unchanged files from `folder`, and keep there, at `close`, new ones.

        Nobody else may write to `folder`, which is made if need be.
        """

    def stat_digest(
        self, path: bytes, skip: Callable[[bytes], bool] | None = None
    ) -> StatDigest | None:
        """A digest that changes when anything at or below `path` does, found without reading it.

        None where there is none: for what isn't there, is reached by a link or isn't in a folder
        of this machine, and where something was changed just now. Folders that `skip` names
        don't count.
        """
        del path, skip
        return None

    def ignoring(self, ignore: IgnoreMatcher) -> ContextTree:
        """The same without what `ignore` excludes. Closing the one closes the other."""
        return _Filtered(self, ignore)

    def below(self, path: str) -> ContextTree:
        """The folder at `path` as a tree of its own, without links to the rest.

        ``path`` is relative, empty for this tree itself. Raises ContextError unless every part
        of it is a folder and no symlink.
        """
        folder = path.encode("utf-8", "surrogateescape")
        parts = folder.split(b"/") if folder else []
        for end in range(1, len(parts) + 1):
            entry = self.get(b"/".join(parts[:end]))
            if entry is None or entry.kind is not Kind.DIRECTORY:
                raise ContextError(f"{shown(folder)} is no folder there, or is reached by a link")
        return _Below(self, folder) if folder else self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_context_directory(
    path: str | os.PathLike[str], ignore: IgnoreMatcher | None = None
) -> ContextTree:
    """The folder `path` as a context. Raises ContextError if it is none, or unreadable.

    Folders are read when something below them is asked for, each once; a file that changes
    after that can't be opened any more.
    """
    try:
        tree: ContextTree = _Directory(Root(path))
    except NotADirectoryError as error:
        raise ContextError(
            f"the build context {os.fspath(path)} is not a directory",
            hint="give the folder, and a Dockerfile with --file",
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ContextError(f"can't open the build context {os.fspath(path)}: {reason}") from error
    return tree if ignore is None else tree.ignoring(ignore)


def open_context_tar(
    stream: BinaryIO, ignore: IgnoreMatcher | None = None, limits: Limits | None = None
) -> ContextTree:
    """A tar, plain or compressed by gzip, bzip2, xz or zstd, as a context.

    Reads `stream` to its end. Raises ContextError for what is no tar, is broken, or has
    names that lead out of it.
    """
    from pybuild.files.archives import open_archive  # noqa: PLC0415 - most contexts are folders
    from pybuild.files.spool import Spool  # noqa: PLC0415 - as above

    spool = Spool()
    try:
        tree: ContextTree = _Archive(spool, open_archive(stream, spool, limits))
    except InvalidImage as error:
        spool.close()
        raise ContextError(f"the build context is no usable tar: {error.message}") from error
    except BaseException:
        spool.close()
        raise
    return tree if ignore is None else tree.ignoring(ignore)


def is_archive(head: bytes) -> bool:
    """Whether a stream that begins with `head` is a tar or compressed, not a Dockerfile.

    512 bytes suffice.
    """
    from pybuild.oci.compression import detect  # noqa: PLC0415 - most contexts are folders
    from pybuild.oci.tarformat import is_header  # noqa: PLC0415 - as above

    return detect(head) is not None or is_header(head[:512])


def read_file(tree: Tree, path: str | bytes, limit: int = _MAX_TEXT) -> bytes | None:
    """The content of a small file such as the Dockerfile; None if there is none.

    Symlinks are followed inside of the tree. Raises ContextError if it is no regular file
    or larger than `limit` bytes.
    """
    name = path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path
    try:
        real = resolve(tree, name)
    except ContextError:
        raise
    except PybuildError as error:
        raise ContextError(error.message) from error
    entry = tree.get(real)
    if entry is None:
        return None
    if entry.kind is not Kind.FILE:
        raise ContextError(f"{shown(name)} is not a regular file")
    if entry.size > limit:
        raise ContextError(f"{shown(name)} is larger than {limit} bytes")
    with tree.open(real) as stream:
        parts = []
        left = entry.size
        while left and (part := stream.read(left)):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


class _Directory(ContextTree):
    def __init__(self, root: Root) -> None:
        self._root = root
        self._lock = threading.RLock()
        self._folders: dict[bytes, dict[bytes, tuple[Entry, os.stat_result]]] = {}
        # what was scanned for a digest, and has no entries yet
        self._scanned: dict[bytes, list[Scanned]] = {}
        self._linked: dict[tuple[int, int], bytes] = {}
        self._digests: StatCache | None = None
        self._began = time.time_ns()
        top = root.status(b"")
        self._status = top.status
        self._top = Entry(
            b"",
            Kind.DIRECTORY,
            stat.S_IMODE(top.status.st_mode),
            mtime=top.status.st_mtime_ns // 10**9,
        )

    def close(self) -> None:
        if self._digests is not None:
            self._digests.save()
        self._root.close()

    def keep_digests_in(self, folder: Path) -> None:
        with self._lock:
            self._digests = StatCache(folder, self._status, self._began)
            for path in list(self._folders):
                # made anew with the digests, once somebody asks
                self._scanned[path] = self._scan(path)
                del self._folders[path]

    def stat_digest(
        self, path: bytes, skip: Callable[[bytes], bool] | None = None
    ) -> StatDigest | None:
        with self._lock, suppress(OSError):
            top = self._scanned_status(path) if path else self._status
            if top is not None and not stat.S_ISLNK(top.st_mode):
                return stat_digest(path, top, self._scan, self._began, skip)
        return None

    def get(self, path: bytes) -> Entry | None:
        if not path:
            return self._top
        found = self._found(path)
        return None if found is None else found[0]

    def children(self, path: bytes) -> Sequence[bytes]:
        return list(self._folder(path))

    def listed(self, path: bytes) -> Iterable[tuple[bytes, Entry]]:
        return [(name, entry) for name, (entry, _) in self._folder(path).items()]

    def open(self, path: bytes) -> BinaryIO:
        found = self._found(path)
        if found is None or found[0].kind is not Kind.FILE:
            raise ContextError(f"{shown(path)} is not a regular file")
        try:
            stream = self._root.open_content(path, found[1])
        except FileNotFoundError as error:
            raise ContextError(f"{shown(path)} was removed while the build was using it") from error
        except OSError as error:
            raise ContextError(f"can't open {shown(path)}: {error.strerror}") from error
        if self._digests is not None and isinstance(stream, AwaitsDigest):
            entry, status = found
            stream.on_digest = partial(self._digests.record, status, not entry.xattrs)
        return stream

    def _found(self, path: bytes) -> tuple[Entry, os.stat_result] | None:
        folder, _, name = path.rpartition(b"/")
        return self._folder(folder).get(name)

    def _folder(self, path: bytes) -> dict[bytes, tuple[Entry, os.stat_result]]:
        """What is in the folder, sorted; empty if it is none. From the nearest known parent down."""
        known = self._folders.get(path)
        if known is not None:
            return known
        with self._lock:
            missing = [path]
            while missing[-1] and parent_of(missing[-1]) not in self._folders:
                missing.append(parent_of(missing[-1]))
            for folder in reversed(missing):
                if not folder:
                    self._folders[folder] = self._list(folder)
                    continue
                above, _, name = folder.rpartition(b"/")
                entry = self._folders[above].get(name)
                is_folder = entry is not None and entry[0].kind is Kind.DIRECTORY
                if not is_folder:
                    return {}
                self._folders[folder] = self._list(folder)
            return self._folders[path]

    def _scan(self, path: bytes) -> list[Scanned]:
        """What is in the folder, sorted, as it was when it was first looked at."""
        known = self._folders.get(path)
        if known is not None:
            return [(name, status) for name, (_, status) in known.items()]
        found = self._scanned.get(path)
        if found is None:
            found = self._scanned[path] = sorted(self._root.scanned(path), key=itemgetter(0))
        return found

    def _scanned_status(self, path: bytes) -> os.stat_result | None:
        above, _, name = path.rpartition(b"/")
        return next((status for each, status in self._scan(above) if each == name), None)

    def _list(self, path: bytes) -> dict[bytes, tuple[Entry, os.stat_result]]:
        try:
            scanned = self._scanned.pop(path, None)
            listed = self._root.listed(path, known=self._digests, scanned=scanned)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ContextError(f"can't read the folder {shown(path)}: {reason}") from error
        if scanned is None:
            listed.sort(key=attrgetter("name"))
        return {
            item.name: (self._entry(join(path, item.name), item), item.status) for item in listed
        }

    def _entry(self, path: bytes, item: Listed) -> Entry:
        status = item.status
        mode = status.st_mode
        kind = _KINDS.get(stat.S_IFMT(mode), Kind.SOCKET)
        link, size, device = item.target, 0, (0, 0)
        if kind is Kind.FILE:
            size = status.st_size
            if status.st_nlink > 1:
                first = self._linked.setdefault((status.st_dev, status.st_ino), path)
                link = first if first != path else b""
        elif kind is Kind.CHARACTER or kind is Kind.BLOCK:
            device = os.major(status.st_rdev), os.minor(status.st_rdev)
        # by their order, which takes half the time that names do: it tells with many files
        return Entry(
            path,
            kind,
            # Windows has no modes; BuildKit gives everything from there the bits of a program
            0o755 if _IS_WINDOWS else stat.S_IMODE(mode),
            0,
            0,
            size,
            status.st_mtime_ns // 10**9,
            link,
            device,
            _allowed(item.xattrs) if item.xattrs else (),
            None if link else item.digest,
        )


def _allowed(xattrs: tuple[tuple[str, bytes], ...]) -> tuple[tuple[str, bytes], ...]:
    from pybuild.oci.layertar import allowed_xattrs  # noqa: PLC0415 - few files have any

    return allowed_xattrs(xattrs)


class _Archive(ContextTree):
    def __init__(self, spool: Spool, inner: ArchiveTree) -> None:
        self._spool = spool
        self._inner = inner

    def close(self) -> None:
        self._spool.close()

    def get(self, path: bytes) -> Entry | None:
        entry = self._inner.get(path)
        if entry is None or (entry.uid, entry.gid) == (0, 0):
            return entry
        return replace(entry, uid=0, gid=0)

    def children(self, path: bytes) -> Sequence[bytes]:
        return self._inner.children(path)

    def open(self, path: bytes) -> BinaryIO:
        return self._inner.open(path)


class _Below(ContextTree):
    """A folder of another tree, as the root."""

    def __init__(self, inner: ContextTree, folder: bytes) -> None:
        self._inner = inner
        self._folder = folder

    def close(self) -> None:
        self._inner.close()

    def keep_digests_in(self, folder: Path) -> None:
        self._inner.keep_digests_in(folder)

    def stat_digest(
        self, path: bytes, skip: Callable[[bytes], bool] | None = None
    ) -> StatDigest | None:
        if skip is None:
            return self._inner.stat_digest(self._there(path))
        start, asked = len(self._folder) + 1, skip
        return self._inner.stat_digest(self._there(path), lambda inner: asked(inner[start:]))

    def get(self, path: bytes) -> Entry | None:
        entry = self._inner.get(self._there(path))
        if entry is None:
            return None
        link = entry.link
        if link and entry.kind is Kind.FILE:  # the other name of a hard link
            inside = link.startswith(self._folder + b"/")
            link = link[len(self._folder) + 1 :] if inside else b""
        return replace(entry, path=path, link=link)

    def children(self, path: bytes) -> Sequence[bytes]:
        return self._inner.children(self._there(path))

    def open(self, path: bytes) -> BinaryIO:
        return self._inner.open(self._there(path))

    def _there(self, path: bytes) -> bytes:
        return join(self._folder, path) if path else self._folder


class _Filtered(ContextTree):
    """Hides what is excluded. An excluded folder is seen if something in it is let in again."""

    def __init__(self, inner: ContextTree, ignore: IgnoreMatcher) -> None:
        self._inner = inner
        self._ignore = ignore
        self._visible: dict[bytes, bool] = {b"": True}

    def close(self) -> None:
        self._inner.close()

    def keep_digests_in(self, folder: Path) -> None:
        self._inner.keep_digests_in(folder)

    def stat_digest(
        self, path: bytes, skip: Callable[[bytes], bool] | None = None
    ) -> StatDigest | None:
        def hides(folder: bytes) -> bool:
            return not self._is_visible(folder) or (skip is not None and skip(folder))

        found = None if hides(path) else self._inner.stat_digest(path, hides)
        if found is None:
            return None
        # files that are hidden count as well, but what hides them must be the same
        whole = json.dumps([found.text, self._ignore.patterns])
        return replace(found, text=sha256(whole.encode("utf-8", "surrogatepass")).hexdigest())

    def get(self, path: bytes) -> Entry | None:
        return self._inner.get(path) if self._is_visible(path) else None

    def children(self, path: bytes) -> Sequence[bytes]:
        if not self._is_visible(path):
            return ()
        names = self._inner.children(path)
        return [name for name in names if self._is_visible(join(path, name))]

    def listed(self, path: bytes) -> Iterable[tuple[bytes, Entry]]:
        if not self._is_visible(path):
            return ()
        found = self._inner.listed(path)
        return [(name, entry) for name, entry in found if self._is_visible(join(path, name))]

    def open(self, path: bytes) -> BinaryIO:
        if not self._is_visible(path):
            raise ContextError(f"{shown(path)} is excluded by .dockerignore")
        return self._inner.open(path)

    def _is_visible(self, path: bytes) -> bool:
        known = self._visible.get(path)
        if known is None:
            known = self._visible[path] = self._decide(path)
        return known

    def _decide(self, path: bytes) -> bool:
        """Whether `path`, or anything below it if it is an excluded folder, isn't excluded."""
        pending = [path]
        while pending:
            here = pending.pop()
            text = here.decode("utf-8", "surrogateescape")
            if not self._ignore.excludes(text):
                return True
            if self._ignore.excludes_all_below(text):
                continue
            entry = self._inner.get(here)
            if entry is not None and entry.kind is Kind.DIRECTORY:
                pending.extend(join(here, name) for name in self._inner.children(here))
        return False
