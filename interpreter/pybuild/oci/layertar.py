"""Layers as tar, read: hostile bytes in (OCI image specification, `layer.md`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import BinaryIO

from pybuild.errors import InvalidImage
from pybuild.oci.compression import Decompressed
from pybuild.oci.layerindex import NO_NAMES, OPAQUE, RESERVED, WHITEOUT, Entry, Kind, LayerIndex
from pybuild.oci.readahead import ReadAhead
from pybuild.oci.tarformat import Limits, Member, TarReader
from pybuild.values import replace

_OVERLAYS_OWN = ("trusted.overlay.", "user.overlay.")
_NEVER_CARRIED = ("user.overlay.", "user.fuseoverlayfs.", "user.containers.")
EMPTY = f"sha256:{sha256().hexdigest()}"
"""The digest of no content."""
TYPES = {
    Kind.FILE: ord("0"),
    Kind.SYMLINK: ord("2"),
    Kind.CHARACTER: ord("3"),
    Kind.BLOCK: ord("4"),
    Kind.DIRECTORY: ord("5"),
    Kind.FIFO: ord("6"),
}
"""The type flag of each kind in a header; a hard link has another."""
_KINDS = {number: kind for kind, number in TYPES.items()} | {ord("7"): Kind.FILE}
HARD_LINK = ord("1")
_MAX_COMPONENT = 255


def shown_path(path: bytes) -> str:
    """`path` for a message, on one line."""
    return path.decode("utf-8", "backslashreplace").encode("unicode_escape").decode()


OnFile = Callable[[Member], Callable[[memoryview], object] | None]
"""Told of each file with content before it is read; what it gives takes that in pieces."""


def read_index(
    stream: BinaryIO,
    limits: Limits | None = None,
    observe: Callable[[bytes], object] | None = None,
    on_file: OnFile | None = None,
) -> tuple[str, LayerIndex]:
    """The diff id of a layer and its index, in one pass to the end of `stream`.

    `stream` is the blob: gzip, zstd or plain tar, told by its first bytes. Nothing is
    unpacked. Names that leave the root, sparse files, broken or oversized input raise
    InvalidImage; of entries with one path the last counts; a name below a symlink of the
    same layer means what the link points to, as it does when containerd unpacks it.
    `observe`, called in another thread, sees the plain tar. `on_file` is told of what may be no
    file of the layer in the end, before anything of it is checked but its header.
    """
    whole = sha256()

    def see(piece: bytes) -> None:
        whole.update(piece)
        if observe is not None:
            observe(piece)

    with Decompressed(stream) as plain, ReadAhead(plain, see) as ahead:
        index = index_tar(TarReader(ahead, limits), on_file=on_file)
    return f"sha256:{whole.hexdigest()}", index


def index_tar(
    reader: TarReader, *, whiteouts: bool = True, on_file: OnFile | None = None
) -> LayerIndex:
    """The index of what `reader` reads, digests included; see :func:`read_index`.

    Without `whiteouts` it is an archive, not a layer: names beginning with ``.wh.`` are
    names like others, and a hard link must have its file in the same tar.
    """
    found = _Found(whiteouts=whiteouts)
    for member in reader:
        digest = None
        if member.size:
            content = sha256()
            take = on_file(member) if on_file is not None else None
            for piece in reader.content():
                content.update(piece)
                if take is not None:
                    take(piece)
            digest = f"sha256:{content.hexdigest()}"
        found.add(member, digest)
    return found.index()


class _Found:
    """The entries of a tar seen so far."""

    def __init__(self, *, whiteouts: bool) -> None:
        self._whiteouts = whiteouts
        self._entries: dict[tuple[bytes, bool], tuple[Entry, int]] = {}
        self._opaque: dict[bytes, Entry] = {}
        self._parents: dict[bytes, bytes] = {b"": b""}

    def index(self) -> LayerIndex:
        found = [*self._entries.values(), *((entry, -1) for entry in self._opaque.values())]
        return LayerIndex([entry for entry, _ in found], [offset for _, offset in found])

    def add(self, member: Member, digest: str | None) -> None:
        path = self._path(member.name)
        folder, _, name = path.rpartition(b"/")
        if self._whiteouts and name.startswith(WHITEOUT):
            self._remove(folder, name)
            return
        entry, offset = self._entry(path, member, digest)
        if entry.kind is not Kind.DIRECTORY and not path:
            raise InvalidImage("the root of the tar is no directory")
        known = self._entries.get((path, False))
        self._entries[path, False] = entry, offset
        if entry.kind is not Kind.DIRECTORY or (known and known[0].kind is not Kind.DIRECTORY):
            self._forget_below(path, entry)

    def _forget_below(self, path: bytes, entry: Entry) -> None:
        """`path` has become, or was, something else than a folder: look parents up anew."""
        if entry.kind is Kind.SYMLINK or path in self._parents:
            self._parents = {b"": b""}

    def _entry(self, path: bytes, member: Member, digest: str | None) -> tuple[Entry, int]:
        # what unpacks a layer may set them: then the kernel shows other files than the index
        if self._whiteouts and any(name.startswith(_OVERLAYS_OWN) for name, _ in member.xattrs):
            raise InvalidImage(
                f"{shown_path(path)} in the tar has an attribute that overlayfs obeys"
            )
        if member.type == HARD_LINK:
            return self._hard_link(path, member)
        kind = _KINDS.get(member.type)
        if kind is None:
            raise InvalidImage(
                f"{shown_path(member.name)} in the tar has the unknown tar type {chr(member.type)!r}"
            )
        if kind is Kind.CHARACTER and member.device == (0, 0):
            raise InvalidImage(
                f"{shown_path(path)} in the tar is a device that stands for a removal"
            )
        entry = Entry(
            path,
            kind,
            member.mode,
            member.uid,
            member.gid,
            member.size if kind is Kind.FILE else 0,
            member.mtime,
            member.link if kind is Kind.SYMLINK else b"",
            member.device,
            allowed_xattrs(member.xattrs) if member.xattrs else (),
            (digest or EMPTY) if kind is Kind.FILE else None,
        )
        return entry, member.offset if kind is Kind.FILE else -1

    def _hard_link(self, path: bytes, member: Member) -> tuple[Entry, int]:
        target = self._path(member.link)
        known = self._entries.get((target, False))
        if target == path:
            raise InvalidImage(f"{shown_path(path)} in the tar is a hard link to itself")
        if known is None and not self._whiteouts:
            raise InvalidImage(
                f"{shown_path(path)} is a hard link to {shown_path(target)}, which isn't there"
            )
        if known is None:  # a file of a lower layer
            return Entry(path, Kind.FILE, member.mode, link=target, mtime=member.mtime), -1
        entry, offset = known
        if entry.kind is Kind.DIRECTORY:
            raise InvalidImage(
                f"{shown_path(path)} in the tar is a hard link to {shown_path(target)}"
            )
        if entry.kind is Kind.FILE:
            entry = replace(entry, link=entry.link or target)
        return replace(entry, path=path), offset

    def _remove(self, folder: bytes, name: bytes) -> None:
        if name == OPAQUE:
            self._opaque[folder] = Entry(folder, Kind.OPAQUE, mode=0)
        elif not name.startswith(RESERVED):
            removed = name[len(WHITEOUT) :]
            if removed in NO_NAMES:
                raise InvalidImage("the tar removes a file without a name")
            path = folder + b"/" + removed if folder else removed
            self._entries[path, True] = Entry(path, Kind.WHITEOUT, mode=0), -1

    def _path(self, name: bytes) -> bytes:
        """The entry's path: nothing but names, parents free of this layer's symlinks."""
        above, _, last = name.rpartition(b"/")
        folder = self._parents.get(above)
        if folder is not None and last not in NO_NAMES and len(last) <= _MAX_COMPONENT:
            return folder + b"/" + last if folder else last
        parts = [part for part in name.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise InvalidImage(f"{shown_path(name)} in the tar leads out of it")
        if parts and max(map(len, parts)) > _MAX_COMPONENT:
            raise InvalidImage(f"a name in the tar is longer than {_MAX_COMPONENT} bytes")
        if self._whiteouts and any(part.startswith(WHITEOUT) for part in parts[:-1]):
            raise InvalidImage(f"{shown_path(name)} in the tar is below a removal")
        if not parts:
            return b""
        written = b"/".join(parts[:-1])
        folder = self._parents.get(written)
        if folder is None:
            folder = self._parents[written] = self._real_folder(parts[:-1])
        if last == parts[-1]:
            self._parents[above] = folder
        return folder + b"/" + parts[-1] if folder else parts[-1]

    def _real_folder(self, parts: list[bytes]) -> bytes:
        todo = parts[::-1]
        done: list[bytes] = []
        links = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                if done:
                    done.pop()
                continue
            done.append(part)
            known = self._entries.get((b"/".join(done), False))
            if known is None or known[0].kind is Kind.DIRECTORY:
                continue
            if known[0].kind is not Kind.SYMLINK:
                raise InvalidImage(f"{shown_path(known[0].path)} in the tar is no directory")
            links += 1
            if links > 40:
                raise InvalidImage(f"{shown_path(known[0].path)} in the tar is a circle of links")
            done = [] if known[0].link.startswith(b"/") else done[:-1]
            todo += [p for p in reversed(known[0].link.split(b"/")) if p not in (b"", b".")]
        return b"/".join(done)


def allowed_xattrs(xattrs: Iterable[tuple[str, bytes]]) -> tuple[tuple[str, bytes], ...]:
    """Those of `xattrs` that a layer may carry, sorted: ``user.*`` and file capabilities.

    What overlayfs and fuse-overlayfs keep for themselves is never among them: a layer could
    forge it.
    """
    return tuple(
        sorted(
            (name, value)
            for name, value in xattrs
            if name == "security.capability"
            or (name.startswith("user.") and not name.startswith(_NEVER_CARRIED))
        )
    )
