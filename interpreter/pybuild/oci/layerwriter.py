"""Layers written as tar: canonical bytes (OCI image specification, `layer.md`).

A layer is made of pieces, whose ends depend on what is beside them alone. So a layer that differs
a little from one that is stored has most of its pieces, which needn't be made again.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING
from zlib import crc32

from pybuild.errors import CopyFailed
from pybuild.oci.compression import Compression, gzip_version
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.layerblocks import BLOCK_SIZE, LayerBlocks, StoredPiece
from pybuild.oci.layerindex import OPAQUE, WHITEOUT, Entry, Kind, LayerIndex
from pybuild.oci.layertar import EMPTY, HARD_LINK, TYPES, shown_path
from pybuild.oci.tarformat import BLOCK, Member, header, plain_header
from pybuild.values import dataclass, replace

if TYPE_CHECKING:
    from pybuild.files.trees import NewEntry

_KEY_VERSION = b"pybuild layer piece 2\n"
# every so many, on average, a piece ends whatever is before it
_ENTRIES = 256
_WORTH_FINDING = 1 << 17


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a layer that is compressed by itself.

    ``key`` tells it from all others; ``plain`` is its size in the tar, ``size`` that in the blob.
    """

    key: bytes
    plain: int
    size: int


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """A layer that was written: its descriptor and its index, digests of files included.

    ``pieces`` are all of it, in their order, if stored ones were looked for.
    """

    diff: LayerDiff
    index: LayerIndex
    pieces: tuple[Piece, ...] = ()


FindPiece = Callable[[bytes], StoredPiece | None]
"""Finds a stored piece by its key."""


def write_layer(
    entries: Iterable[NewEntry],
    sink: Callable[[bytes], object],
    compression: Compression = Compression.GZIP,
    on_bytes: Callable[[int], object] | None = None,
    *,
    newest: int | None = None,
    find: FindPiece | None = None,
) -> WrittenLayer:
    """Write `entries` as a layer to `sink`, hashing and compressing in one pass.

    The bytes depend on the entries alone, not on their order: names sorted, owners numeric,
    no times but mtime, whole seconds; of several hard links the first by name has the
    content, and all have its attributes. Paths must differ, but for a WHITEOUT before what
    replaces the removed file.
    `on_bytes` is told the number of tar bytes done since it was last called. With `newest`,
    in seconds since 1970, later modification times become that one. Files whose digests the
    entries have aren't read where `find` knows the piece that they are in. A content with an
    attribute ``on_digest`` is told its digest once it was read.
    Raises CopyFailed if a file can't be read or isn't as long as its entry says, DamagedPiece.
    """
    with LayerBlocks(sink, compression, on_bytes) as blocks:
        settled, targets = _settle_links(entries)
        writing = _Writing(blocks, targets, newest, find)
        for new in settled:
            writing.add(new)
        writing.end()
        # while what is left is processed
        index = LayerIndex(writing.listed, writing.offsets)
        diff = blocks.finish()
        pieces = tuple(
            Piece(key, plain, end - begin)
            for (key, plain), begin, end in zip(
                writing.keys, [0, *blocks.ends], blocks.ends, strict=False
            )
        )
    return WrittenLayer(diff, index, pieces)


class _Writing:
    """Writes entries that come in order, piece by piece.

    `targets` are the files that get more names.
    """

    def __init__(
        self,
        blocks: LayerBlocks,
        targets: Container[bytes],
        newest: int | None,
        find: FindPiece | None,
    ) -> None:
        self.listed: list[Entry] = []
        self.offsets: list[int] = []
        self.keys: list[tuple[bytes, int]] = []
        self._blocks = blocks
        self._newest = newest
        self._find = find
        self._contents: dict[bytes, tuple[Entry, int]] = {}
        self._targets = targets
        # of the piece that isn't ended; what waits may be part of a stored one
        self._size = 0
        self._parts: list[bytes] = []
        self._waiting: list[_Waiting] = []
        self._waits = find is not None

    def add(self, new: NewEntry) -> None:
        entry, size = new.entry, 0
        digest: str | None = ""
        if self._newest is not None and entry.mtime > self._newest:
            entry = replace(entry, mtime=self._newest)
        if entry.kind is Kind.FILE and not entry.link:
            head = _file_header(entry)
            size = entry.size + -entry.size % BLOCK
            digest = entry.digest if size else EMPTY
            if entry.path in self._targets:
                self._contents[entry.path] = entry, -1
        else:
            if entry.kind is Kind.FILE:
                entry = replace(self._contents[entry.link][0], path=entry.path, link=entry.link)
            elif entry.kind in (Kind.WHITEOUT, Kind.OPAQUE):
                entry = Entry(entry.path, entry.kind, mode=0)
            head = header(_member(entry))
        # what is inserted or removed somewhere changes few pieces
        if self._size + len(head) + size > BLOCK_SIZE or not crc32(entry.path) % _ENTRIES:
            self._end_piece()
        self._size += len(head) + size
        if self._waits and digest is not None:
            self._waiting.append((new, entry, head, digest))
        else:
            self._write_waiting()
            self._waits = False
            self._write(new, entry, head, digest)

    def end(self) -> None:
        """There are no more entries."""
        self._end_piece(bytes(2 * BLOCK))

    def _end_piece(self, tail: bytes = b"") -> None:
        size = self._size + len(tail)
        if not size:
            return
        key, stored = b"", None
        if self._find is not None and self._waits and size >= _WORTH_FINDING:
            parts = [
                part for _, _, head, digest in self._waiting for part in (head, digest.encode())
            ]
            key = _piece_key(parts, tail)
            stored = self._find(key)
        if stored is not None and stored.plain == size:
            self._list_waiting(self._blocks.position)
            self._blocks.take_over(stored)
        else:
            self._write_waiting()
            self._blocks.write(tail)
            self._blocks.end_piece()
            key = _piece_key(self._parts, tail) if self._find is not None else b""
        if key:
            self.keys.append((key, size))
        self._parts.clear()
        self._size = 0
        self._waits = self._find is not None

    def _write_waiting(self) -> None:
        for waiting in self._waiting:
            self._write(*waiting)
        self._waiting.clear()

    def _write(self, new: NewEntry, entry: Entry, head: bytes, digest: str | None) -> None:
        position = self._blocks.position + len(head)
        if digest == "":
            self._blocks.write(head)
        else:
            digest = _write_file(self._blocks, head, new)
        if self._find is not None:
            self._parts += (head, digest.encode())
        self._list(entry, digest, position)

    def _list_waiting(self, position: int) -> None:
        for _, entry, head, digest in self._waiting:
            position += len(head)
            self._list(entry, digest, position)
            if digest:
                position += entry.size + -entry.size % BLOCK
        self._waiting.clear()

    def _list(self, entry: Entry, digest: str, position: int) -> None:
        offset = -1
        if digest:
            offset = position
            if entry.digest != digest:
                entry = replace(entry, digest=digest)
            if entry.path in self._targets:
                self._contents[entry.path] = entry, offset
        elif entry.kind is Kind.FILE:
            target, offset = self._contents[entry.link]
            entry = replace(entry, digest=target.digest)
        self.listed.append(entry)
        self.offsets.append(offset)


_Waiting = tuple["NewEntry", Entry, bytes, str]
"""What is put, the same as it is written, its header, and its content's digest, empty for none."""


def _piece_key(parts: Iterable[bytes], tail: bytes) -> bytes:
    """What no piece has that differs in a byte, or is compressed by something else.

    `parts` are the headers, each followed by the content's digest, whose length it tells.
    """
    return sha256(b"".join((_KEY_VERSION, gzip_version(), *parts, tail))).digest()


def _settle_links(entries: Iterable[NewEntry]) -> tuple[Sequence[NewEntry], Container[bytes]]:
    """The entries in their order in the tar, and which of them have more names.

    Of linked files the first has the content.
    """
    ordered = sorted(entries, key=_order)
    names: dict[bytes, list[NewEntry]] = {}
    before: NewEntry | None = None
    for new in ordered:
        if new.entry.kind is Kind.FILE and new.entry.link:
            names.setdefault(new.entry.link, []).append(new)
        if (
            before is not None
            and before.entry.path == new.entry.path
            and _order(before) == _order(new)
        ):
            raise ValueError(f"two entries of a layer have the path {new.entry.path!r}")
        before = new
    if not any(links[0].entry.path < target for target, links in names.items()):
        return ordered, names.keys()
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
    return settled, {first_of.get(target, target) for target in names}


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
            return Member(folder + slash + WHITEOUT + name, TYPES[Kind.FILE], mode=0)
        case Kind.OPAQUE:
            name = path + b"/" + OPAQUE if path else OPAQUE
            return Member(name, TYPES[Kind.FILE], mode=0)
        case Kind.SOCKET:
            raise ValueError(f"a layer can't hold the socket {path!r}")
        case Kind.DIRECTORY:
            path = path + b"/" if path else b"./"
        case Kind.FILE | Kind.SYMLINK | Kind.CHARACTER | Kind.BLOCK | Kind.FIFO:
            pass
    linked = entry.kind is Kind.FILE and bool(entry.link)
    return Member(
        path,
        HARD_LINK if linked else TYPES[entry.kind],
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
        return EMPTY
    try:
        stream = new.content()
        try:
            if isinstance(stream, BytesIO):  # one piece is written in half the time of three
                content = stream.read()
                digest = f"sha256:{sha256(content).hexdigest()}" if len(content) == size else None
                blocks.write(b"".join((head, content, padding)))
            else:
                blocks.write(head)
                digest = blocks.copy(stream, size)
                blocks.write(padding)
            tell: Callable[[str], object] | None = getattr(stream, "on_digest", None)
            if tell is not None and digest is not None:
                tell(digest)
        finally:
            stream.close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise CopyFailed(f"can't read {shown_path(new.entry.path)}: {reason}") from error
    if digest is None:
        raise CopyFailed(f"{shown_path(new.entry.path)} changed while it was read")
    return digest
