"""What COPY and ADD put where: the rules of BuildKit's file operations, on trees.

Nothing is copied here. A plan is the list of entries of the next layer; the content of each
file is opened when the layer is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pybuild.errors import CopyFailed, InvalidImage
from pybuild.files.globs import expand, has_wildcards, literal
from pybuild.files.ignore import IgnoreMatcher
from pybuild.files.modes import Mode, parse_mode
from pybuild.files.staging import Staging
from pybuild.files.trees import MemoryTree, NewEntry, Tree, join, parent_of, resolve, shown
from pybuild.oci.layerindex import Entry, Kind
from pybuild.values import dataclass, replace

if TYPE_CHECKING:
    from pybuild.files.archives import ArchiveTree

_FOLDER_MODE = 0o755


@dataclass(frozen=True, slots=True)
class CopyRequest:
    """A COPY or ADD of local files.

    ``patterns`` are the sources, relative to the source's root or absolute from it;
    ``destination`` is absolute, a trailing slash says that it is a folder. ``chown`` is a
    uid and gid; None keeps owners. ``created`` is the time of folders that are made, in
    seconds since 1970. ``unpack`` is ADD's treatment of tar archives.
    """

    patterns: tuple[str, ...]
    destination: str
    exclude: tuple[str, ...] = ()
    chown: tuple[int, int] | None = None
    chmod: str | None = None
    parents: bool = False
    link: bool = False
    unpack: bool = False
    created: int = 0


def plain_path(pattern: str) -> str | None:
    """The path from the source's root that `pattern` means; None if it has wildcards."""
    return None if has_wildcards(pattern) else literal(_clean(pattern))


def plan_copy(request: CopyRequest, source: Tree, destination: Tree) -> list[NewEntry]:
    """The entries that the COPY adds to a layer over `destination`, sorted by path.

    Their paths are resolved, their missing parents among them. With ``link`` the destination
    counts as empty, so that no symlink of it is followed and every parent is made anew,
    unless ``chmod`` is given too (BuildKit's rule). Content of unpacked archives lies in a
    temporary file that goes with the last entry. Raises CopyFailed.
    """
    return plan_copies([(request, source)], destination)


def plan_copies(copies: Sequence[tuple[CopyRequest, Tree]], destination: Tree) -> list[NewEntry]:
    """As :func:`plan_copy`, of several sources that are copied one after the other."""
    request = copies[0][0]
    if sum(len(one.patterns) for one, _ in copies) > 1 and not request.destination.endswith("/"):
        raise CopyFailed(
            "with more than one source the destination must be a directory and end with a /"
        )
    if request.link and not request.chmod:
        destination = MemoryTree(())
    staging = Staging(destination)
    for one, source in copies:
        copy = _Copy(one, source, staging)
        for pattern in one.patterns:
            copy.add(pattern)
    return staging.entries()


class _Copy:
    def __init__(self, request: CopyRequest, source: Tree, staging: Staging) -> None:
        self.staging = staging
        self._request = request
        self._source = source
        self._mode = parse_mode(request.chmod) if request.chmod else Mode()
        self._exclude = IgnoreMatcher(request.exclude) if request.exclude else None
        text = request.destination
        self._into_folder = text.endswith(("/", "/."))
        self._destination = text.encode("utf-8", "surrogateescape")

    def add(self, pattern: str) -> None:
        """Copy what one source word selects."""
        include = None
        if self._request.parents:
            start, pivot, rest = pattern.partition("/./")
            pattern, below = (start, rest) if pivot else ("", start)
            include = _Include(_clean(below))
        wild = has_wildcards(pattern)
        for path in self._select(_clean(pattern), wild=wild):
            if include is None and self._request.unpack and self._unpack(path):
                continue
            found = self._copy(path, include, wild=wild)
            if include is not None and not found and not wild and not include.wild:
                raise self._missing(join(path, include.pattern.encode("utf-8", "surrogateescape")))

    def _select(self, pattern: str, *, wild: bool) -> Iterator[bytes]:
        """The paths that `pattern` means; symlinks in its plain part are resolved."""
        if not wild:
            yield literal(pattern).encode("utf-8", "surrogateescape")
            return
        parts = pattern.split("/")
        plain = next(i for i, part in enumerate(parts) if has_wildcards(part))
        start = literal("/".join(parts[:plain])).encode("utf-8", "surrogateescape")
        folder = resolve(self._source, start)
        entry = self._source.get(folder)
        if folder and (entry is None or entry.kind is not Kind.DIRECTORY):
            raise self._missing(start)
        yield from expand(self._source, folder, "/".join(parts[plain:]))

    def _copy(self, path: bytes, include: _Include | None, *, wild: bool) -> bool:
        """Copy the file, or what is in the folder; False if `include` let nothing through."""
        real = resolve(self._source, path)
        entry = self._source.get(real)
        if entry is None and real:
            raise self._missing(path)
        is_folder = entry is None or entry.kind is Kind.DIRECTORY
        if not is_folder and wild and self._excluded(path.rpartition(b"/")[2]):
            return True
        links: dict[bytes, object] = {}
        target = self._target(path, entry, is_folder=is_folder)
        if is_folder:
            return self._copy_below(real, target, include, links)
        assert entry is not None  # noqa: S101  (only the root may lack an entry)
        if include is not None:
            raise CopyFailed(f"/{shown(path)} is not a directory")
        self._put_file(entry, real, target, links)
        return True

    def _target(self, path: bytes, entry: Entry | None, *, is_folder: bool) -> bytes:
        """Where the source goes, with its missing parents made; itself too if it is a folder."""
        staging = self.staging
        if self._into_folder:
            self._make_folders(resolve(staging, self._destination))
        target = resolve(staging, self._destination)
        there = staging.get(target)
        into = there is not None and there.kind is Kind.DIRECTORY
        if not is_folder and (into or not target):
            target = join(target, path.rpartition(b"/")[2])
        if is_folder and target and there is None:
            mtime = None if entry is None else entry.mtime
            self._make_folders(target, mtime=mtime)
        else:
            self._make_folders(parent_of(target))
        if is_folder and there is not None and not into:
            raise CopyFailed(f"cannot copy to non-directory: /{shown(target)}")
        return target

    def _copy_below(
        self, real: bytes, target: bytes, include: _Include | None, links: dict[bytes, object]
    ) -> bool:
        """Copy what is in the folder `real` into the folder `target`."""
        if include is not None and not include.pattern:
            include = None
        copied = include is None
        pending: list[tuple[bytes, bytes, _Delayed | None]] = [(b"", target, None)]
        while pending:
            below, folder, delayed = pending.pop()
            for name, entry in self._source.listed(join(real, below) if below else real):
                inside = join(below, name)
                path, goal = join(real, inside), join(folder, name)
                included = include is None or include.selects(inside)
                excluded = self._exclude is not None and self._excluded(inside)
                if included and not excluded:
                    if delayed is not None:
                        self._make_delayed(delayed)
                    copied = True
                    if entry.kind is Kind.DIRECTORY:
                        self._put_folder(entry, path, goal)
                    else:
                        self._put_file(entry, path, goal, links)
                if entry.kind is not Kind.DIRECTORY:
                    continue
                if self._nothing_below(inside, include, included=included):
                    continue
                waiting = None if included and not excluded else _Delayed(entry, goal, delayed)
                pending.append((inside, goal, waiting))
        return copied

    def _nothing_below(self, inside: bytes, include: _Include | None, *, included: bool) -> bool:
        text = inside.decode("utf-8", "surrogateescape")
        if self._exclude is not None and self._exclude.excludes_all_below(text):
            return True
        return include is not None and not included and not include.may_select_below(text)

    def _excluded(self, inside: bytes) -> bool:
        if self._exclude is None:
            return False
        return self._exclude.excludes(inside.decode("utf-8", "surrogateescape"))

    def _make_delayed(self, delayed: _Delayed | None) -> None:
        """Make folders that came before an included entry without being included themselves."""
        chain = []
        while delayed is not None and not delayed.made:
            delayed.made = True
            chain.append(delayed)
            delayed = delayed.above
        for one in reversed(chain):
            there = self.staging.get(one.target)
            if there is None or there.kind is not Kind.DIRECTORY:
                self._put_folder(one.entry, None, one.target)
            elif there.mode != one.entry.mode:
                self.staging.put(NewEntry(replace(there, mode=one.entry.mode)))

    def _put_folder(self, entry: Entry, path: bytes | None, target: bytes) -> None:
        """A folder inside of a copied one: it takes on the source's attributes."""
        there = self.staging.get(target)
        if there is not None and there.kind is not Kind.DIRECTORY:
            raise CopyFailed(f"cannot copy to non-directory: /{shown(target)}")
        placed = self._placed(entry, target)
        # its time alone is no change: what a step does mustn't depend on what is in no key
        if there is None or replace(there, mtime=placed.mtime) != placed:
            self.staging.replace(there, NewEntry(placed, source=path))

    def _put_file(
        self, entry: Entry, path: bytes, target: bytes, links: dict[bytes, object]
    ) -> None:
        if entry.kind is Kind.SOCKET:
            return
        there = self.staging.get(target)
        if there is not None and there.kind is Kind.DIRECTORY:
            raise CopyFailed(f"cannot replace to directory /{shown(target)} with file")
        placed = self._placed(entry, target)
        if entry.kind is not Kind.FILE:
            self.staging.replace(there, NewEntry(placed, source=path))
            return
        group = links.setdefault(entry.link or entry.path, object())
        new = NewEntry(placed, partial(self._source.open, path), path)
        self.staging.replace(there, new, group)

    def _placed(self, entry: Entry, target: bytes) -> Entry:
        uid, gid = self._request.chown or (entry.uid, entry.gid)
        mode = entry.mode
        if self._request.chmod and entry.kind is not Kind.SYMLINK:
            mode = self._mode.apply(mode, folder=entry.kind is Kind.DIRECTORY)
        link = entry.link if entry.kind is Kind.SYMLINK else b""
        # dataclasses.replace would take three times as long, which tells with many files
        return Entry(
            target,
            entry.kind,
            mode,
            uid,
            gid,
            entry.size,
            entry.mtime,
            link,
            entry.device,
            entry.xattrs,
            entry.digest,
        )

    def _make_folders(
        self, path: bytes, *, mode: int | None = None, mtime: int | None = None
    ) -> None:
        """Make the folder `path`, which is resolved, and its missing parents.

        `mode` is that of them all, by default --chmod's, and `mtime` that of the last.
        """
        if mode is None:
            mode = _FOLDER_MODE if self._mode.octal is None else self._mode.octal & 0o777
        uid, gid = self._request.chown or (0, 0)
        end = 0
        while path and end < len(path):
            end = path.find(b"/", end + 1) if end else path.find(b"/")
            end = len(path) if end < 0 else end
            folder = path[:end]
            there = self.staging.get(folder)
            if there is None:
                time = mtime if end == len(path) and mtime is not None else self._request.created
                made = Entry(folder, Kind.DIRECTORY, mode, uid, gid, mtime=time)
                self.staging.put(NewEntry(made))
            elif there.kind is not Kind.DIRECTORY:
                raise CopyFailed(f"cannot copy to non-directory: /{shown(folder)}")

    def _unpack(self, path: bytes) -> bool:
        """Unpack the source into the destination if it is a tar; False if it is none."""
        from pybuild.files.archives import (  # noqa: PLC0415 - for ADD
            is_archive_content,
            open_archive,
        )
        from pybuild.files.spool import Spool  # noqa: PLC0415 - as above

        real = resolve(self._source, path)
        entry = self._source.get(real)
        if entry is None or entry.kind is not Kind.FILE:
            return False
        with self._source.open(real) as stream:
            if not is_archive_content(stream):
                return False
        spool = Spool()
        try:
            with self._source.open(real) as stream:
                archive = open_archive(stream, spool)
        except InvalidImage as error:
            spool.close()
            raise CopyFailed(f"can't unpack /{shown(path)}: {error.message}") from error
        target = resolve(self.staging, self._destination)
        self._make_folders(target, mode=_FOLDER_MODE)
        self._put_archive(archive, target)
        return True

    def _put_archive(self, archive: ArchiveTree, top: bytes) -> None:
        """Place an archive's entries as tar does: replacing what isn't a folder on both sides."""
        links: dict[bytes, object] = {}
        folders: dict[bytes, bytes] = {b"": top}
        for entry in archive.index:
            if not entry.path:
                continue
            above, _, name = entry.path.rpartition(b"/")
            if above not in folders:
                folder = resolve(self.staging, join(top, above))
                self._make_folders(folder, mode=_FOLDER_MODE)
                folders[above] = folder
            target = join(folders[above], name)
            uid, gid = self._request.chown or (entry.uid, entry.gid)
            link = entry.link if entry.kind is Kind.SYMLINK else b""
            placed = replace(entry, path=target, uid=uid, gid=gid, link=link)
            if entry.kind is Kind.FILE:
                group = links.setdefault(entry.link or entry.path, object())
                content = partial(archive.open, entry.path)
                self.staging.put(NewEntry(placed, content), group)
            else:
                self.staging.put(NewEntry(placed))

    def _missing(self, path: bytes) -> CopyFailed:
        return CopyFailed(
            f'"/{shown(path).strip("/")}": not found',
            hint="a path starts at the root of the context, and .dockerignore may exclude it",
        )


@dataclass(slots=True)
class _Delayed:
    """A folder on the way to entries that may turn out to be included."""

    entry: Entry
    target: bytes
    above: _Delayed | None
    made: bool = False


class _Include:
    """The part of a --parents source behind its pivot: what is taken, with its parents."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.wild = has_wildcards(pattern)
        self._matcher = IgnoreMatcher([pattern]) if pattern else None
        parts = pattern.split("/")
        plain = next((i for i, part in enumerate(parts) if has_wildcards(part)), len(parts))
        self._start = literal("/".join(parts[:plain]))

    def selects(self, inside: bytes) -> bool:
        text = inside.decode("utf-8", "surrogateescape")
        return self._matcher is None or self._matcher.excludes(text)

    def may_select_below(self, text: str) -> bool:
        """Whether the folder `text` lies on the way to, or below, the plain start."""
        start = self._start
        return not start or f"{start}/".startswith(f"{text}/") or text.startswith(f"{start}/")


def _clean(pattern: str) -> str:
    """`pattern` without empty parts, ``.`` and ``..``; none of these leads out of the root."""
    parts: list[str] = []
    for part in pattern.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)
