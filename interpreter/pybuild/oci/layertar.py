"""Layers as tar: canonical bytes out, hostile bytes in (OCI image specification, `layer.md`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

from pybuild.errors import CopyFailed, InvalidImage
from pybuild.oci.compression import Compression, Decompressed
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.layerblocks import LayerBlocks
from pybuild.oci.layerindex import Entry, Kind, LayerIndex
from pybuild.oci.readahead import ReadAhead
from pybuild.oci.tarformat import BLOCK, Limits, Member, TarReader, header, plain_header
from pybuild.values import dataclass, replace

if TYPE_CHECKING:
    from pybuild.files.trees import NewEntry

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_RESERVED = b".wh..wh."
_OVERLAYS_OWN = ("trusted.overlay.", "user.overlay.")
_NEVER_CARRIED = ("user.overlay.", "user.fuseoverlayfs.", "user.containers.")
_EMPTY = f"sha256:{sha256().hexdigest()}"
_TYPES = {
    Kind.FILE: ord("0"),
    Kind.SYMLINK: ord("2"),
    Kind.CHARACTER: ord("3"),
    Kind.BLOCK: ord("4"),
    Kind.DIRECTORY: ord("5"),
    Kind.FIFO: ord("6"),
}
_KINDS = {number: kind for kind, number in _TYPES.items()} | {ord("7"): Kind.FILE}
_HARD_LINK = ord("1")
_MAX_COMPONENT = 255


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """A layer that was written: its descriptor and its index, digests of files included."""

    diff: LayerDiff
    index: LayerIndex


def write_layer(
    entries: Iterable[NewEntry],
    sink: Callable[[bytes], object],
    compression: Compression = Compression.GZIP,
    on_bytes: Callable[[int], object] | None = None,
    newest: int | None = None,
) -> WrittenLayer:
    """Write `entries` as a layer to `sink`, hashing and compressing in one pass.

    The bytes depend on the entries alone, not on their order: names sorted, owners numeric,
    no times but mtime, whole seconds; of several hard links the first by name has the
    content, and all have its attributes. Paths must differ, but for a WHITEOUT before what
    replaces the removed file.
    `on_bytes` is told the number of tar bytes done since it was last called. With `newest`,
    in seconds since 1970, later modification times become that one. Raises CopyFailed if a file can't be read or isn't as long as its entry says.
    """
    with LayerBlocks(sink, compression, on_bytes) as blocks:
        listed, offsets = _write_entries(_settle_links(entries), blocks, newest)
        diff = blocks.finish()
    return WrittenLayer(diff, LayerIndex(listed, offsets))


def _write_entries(
    entries: Iterable[NewEntry], blocks: LayerBlocks, newest: int | None
) -> tuple[list[Entry], list[int]]:
    """Write what is in order; the entries as they are written, and where their content begins."""
    written: dict[bytes, Entry] = {}
    listed: list[Entry] = []
    offsets: list[int] = []
    offset_of: dict[bytes, int] = {}
    before: tuple[bytes, int] | None = None
    for new in entries:
        key = _order(new)
        if key == before:
            raise ValueError(f"two entries of a layer have the path {new.entry.path!r}")
        before = key
        entry = new.entry
        if newest is not None and entry.mtime > newest:
            entry = replace(entry, mtime=newest)
        offset = -1
        if entry.kind is Kind.FILE and entry.link:
            target = entry.link
            entry = replace(written[target], path=entry.path, link=target)
            offset = offset_of[target]
        elif entry.kind in (Kind.WHITEOUT, Kind.OPAQUE):
            entry = Entry(entry.path, entry.kind, mode=0)
        if entry.kind is Kind.FILE and not entry.link:
            head = _file_header(entry)
            offset = offset_of[entry.path] = blocks.position + len(head)
            entry = written[entry.path] = _with_digest(entry, _write_file(blocks, head, new))
        else:
            blocks.write(header(_member(entry)))
        listed.append(entry)
        offsets.append(offset)
    return listed, offsets


def _settle_links(entries: Iterable[NewEntry]) -> list[NewEntry]:
    """The entries in their order in the tar; of linked files the first has the content."""
    ordered = sorted(entries, key=_order)
    names: dict[bytes, list[NewEntry]] = {}
    for new in ordered:
        if new.entry.kind is Kind.FILE and new.entry.link:
            names.setdefault(new.entry.link, []).append(new)
    if not any(links[0].entry.path < target for target, links in names.items()):
        return ordered
    first_of = {
        target: links[0].entry.path
        for target, links in names.items()
        if links[0].entry.path < target
    }
    contents = {
        n.entry.path: n for n in ordered if n.entry.path in first_of and n.entry.kind is Kind.FILE
    }
    settled = []
    for new in ordered:
        entry = new.entry
        target = entry.link if entry.kind is Kind.FILE else b""
        if target in first_of:
            first = first_of[target]
            if entry.path == first:
                holder = contents[target]
                moved = replace(holder.entry, path=entry.path)
                settled.append(replace(holder, entry=moved))
            else:
                settled.append(replace(new, entry=replace(entry, link=first)))
        elif entry.kind is Kind.FILE and entry.path in first_of:
            settled.append(
                replace(new, entry=replace(entry, link=first_of[entry.path]), content=None)
            )
        else:
            settled.append(new)
    return settled


def _order(new: NewEntry) -> tuple[bytes, int]:
    """Parents before children, a removal before what replaces it, an opaque mark in its folder."""
    match new.entry.kind:
        case Kind.WHITEOUT:
            return new.entry.path, 0
        case Kind.OPAQUE:
            return new.entry.path + b"/", 0
        case _:
            return new.entry.path, 1


def _member(entry: Entry) -> Member:
    path = entry.path
    match entry.kind:
        case Kind.WHITEOUT:
            folder, slash, name = path.rpartition(b"/")
            return Member(folder + slash + _WHITEOUT + name, _TYPES[Kind.FILE], mode=0)
        case Kind.OPAQUE:
            name = path + b"/" + _OPAQUE if path else _OPAQUE
            return Member(name, _TYPES[Kind.FILE], mode=0)
        case Kind.SOCKET:
            raise ValueError(f"a layer can't hold the socket {path!r}")
        case Kind.DIRECTORY:
            path = path + b"/" if path else b"./"
        case Kind.FILE | Kind.SYMLINK | Kind.CHARACTER | Kind.BLOCK | Kind.FIFO:
            pass
    linked = entry.kind is Kind.FILE and bool(entry.link)
    return Member(
        path,
        _HARD_LINK if linked else _TYPES[entry.kind],
        entry.mode,
        entry.uid,
        entry.gid,
        entry.size if entry.kind is Kind.FILE and not linked else 0,
        entry.mtime,
        entry.link if linked or entry.kind is Kind.SYMLINK else b"",
        entry.device,
        entry.xattrs,
    )


def _file_header(entry: Entry) -> bytes:
    numbers = (entry.mode, entry.uid, entry.gid, entry.size, entry.mtime)
    plain = None if entry.xattrs else plain_header(entry.path, numbers)
    return plain or header(_member(entry))


def _write_file(blocks: LayerBlocks, head: bytes, new: NewEntry) -> str:
    """Write a file's header, content and padding; the digest of the content."""
    size = new.entry.size
    padding = bytes(-size % BLOCK)
    if new.content is None:
        if size:
            raise ValueError(f"{new.entry.path!r} has no content")
        blocks.write(head)
        return _EMPTY
    try:
        with closing(new.content()) as stream:
            if isinstance(stream, BytesIO):  # one piece is written in half the time of three
                content = stream.read()
                digest = f"sha256:{sha256(content).hexdigest()}" if len(content) == size else None
                blocks.write(b"".join((head, content, padding)))
            else:
                blocks.write(head)
                digest = blocks.copy(stream, size)
                blocks.write(padding)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CopyFailed(f"can't read {_shown(new.entry.path)}: {reason}") from error
    if digest is None:
        raise CopyFailed(f"{_shown(new.entry.path)} changed while it was read")
    return digest


def _with_digest(entry: Entry, digest: str) -> Entry:
    """What dataclasses.replace gives in three times the time, which tells with many files."""
    return Entry(
        entry.path,
        entry.kind,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.size,
        entry.mtime,
        entry.link,
        entry.device,
        entry.xattrs,
        digest,
    )


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace").encode("unicode_escape").decode()


def read_index(
    stream: BinaryIO,
    limits: Limits | None = None,
    observe: Callable[[bytes], object] | None = None,
) -> tuple[str, LayerIndex]:
    """The diff id of a layer and its index, in one pass to the end of `stream`.

    `stream` is the blob: gzip, zstd or plain tar, told by its first bytes. Nothing is
    unpacked. Names that leave the root, sparse files, broken or oversized input raise
    InvalidImage; of entries with one path the last counts; a name below a symlink of the
    same layer means what the link points to, as it does when containerd unpacks it.
    `observe`, called in another thread, sees the plain tar.
    """
    whole = sha256()

    def see(piece: bytes) -> None:
        whole.update(piece)
        if observe is not None:
            observe(piece)

    with Decompressed(stream) as plain, ReadAhead(plain, see) as ahead:
        index = index_tar(TarReader(ahead, limits))
    return f"sha256:{whole.hexdigest()}", index


def index_tar(reader: TarReader, *, whiteouts: bool = True) -> LayerIndex:
    """The index of what `reader` reads, digests included; see :func:`read_index`.

    Without `whiteouts` it is an archive, not a layer: names beginning with ``.wh.`` are
    names like others, and a hard link must have its file in the same tar.
    """
    found = _Found(whiteouts=whiteouts)
    for member in reader:
        digest = None
        if member.size:
            content = sha256()
            for piece in reader.content():
                content.update(piece)
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
        if self._whiteouts and name.startswith(_WHITEOUT):
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
            raise InvalidImage(f"{_shown(path)} in the tar has an attribute that overlayfs obeys")
        if member.type == _HARD_LINK:
            return self._hard_link(path, member)
        kind = _KINDS.get(member.type)
        if kind is None:
            raise InvalidImage(
                f"{_shown(member.name)} in the tar has the unknown tar type {chr(member.type)!r}"
            )
        if kind is Kind.CHARACTER and member.device == (0, 0):
            raise InvalidImage(f"{_shown(path)} in the tar is a device that stands for a removal")
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
            (digest or _EMPTY) if kind is Kind.FILE else None,
        )
        return entry, member.offset if kind is Kind.FILE else -1

    def _hard_link(self, path: bytes, member: Member) -> tuple[Entry, int]:
        target = self._path(member.link)
        known = self._entries.get((target, False))
        if target == path:
            raise InvalidImage(f"{_shown(path)} in the tar is a hard link to itself")
        if known is None and not self._whiteouts:
            raise InvalidImage(
                f"{_shown(path)} is a hard link to {_shown(target)}, which isn't there"
            )
        if known is None:  # a file of a lower layer
            return Entry(path, Kind.FILE, member.mode, link=target, mtime=member.mtime), -1
        entry, offset = known
        if entry.kind is Kind.DIRECTORY:
            raise InvalidImage(f"{_shown(path)} in the tar is a hard link to {_shown(target)}")
        if entry.kind is Kind.FILE:
            entry = replace(entry, link=entry.link or target)
        return replace(entry, path=path), offset

    def _remove(self, folder: bytes, name: bytes) -> None:
        if name == _OPAQUE:
            self._opaque[folder] = Entry(folder, Kind.OPAQUE, mode=0)
        elif not name.startswith(_RESERVED):
            removed = name[len(_WHITEOUT) :]
            if removed in (b"", b".", b".."):
                raise InvalidImage("the tar removes a file without a name")
            path = folder + b"/" + removed if folder else removed
            self._entries[path, True] = Entry(path, Kind.WHITEOUT, mode=0), -1

    def _path(self, name: bytes) -> bytes:
        """The entry's path: nothing but names, parents free of this layer's symlinks."""
        parts = [part for part in name.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise InvalidImage(f"{_shown(name)} in the tar leads out of it")
        if parts and max(map(len, parts)) > _MAX_COMPONENT:
            raise InvalidImage(f"a name in the tar is longer than {_MAX_COMPONENT} bytes")
        if self._whiteouts and any(part.startswith(_WHITEOUT) for part in parts[:-1]):
            raise InvalidImage(f"{_shown(name)} in the tar is below a removal")
        if not parts:
            return b""
        written = b"/".join(parts[:-1])
        folder = self._parents.get(written)
        if folder is None:
            folder = self._parents[written] = self._real_folder(parts[:-1])
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
                raise InvalidImage(f"{_shown(known[0].path)} in the tar is no directory")
            links += 1
            if links > 40:
                raise InvalidImage(f"{_shown(known[0].path)} in the tar is a circle of links")
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
