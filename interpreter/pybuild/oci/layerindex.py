"""The index of a layer: every entry of its tar, so that files can be found without unpacking."""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from enum import Enum

from pybuild.errors import InvalidImage
from pybuild.values import dataclass


class Kind(Enum):
    """What an :class:`Entry` is."""

    FILE = "file"
    DIRECTORY = "dir"
    SYMLINK = "symlink"
    CHARACTER = "char"
    BLOCK = "block"
    FIFO = "fifo"
    SOCKET = "socket"  # seen in contexts only: a layer can't hold one
    WHITEOUT = "whiteout"  # `path` is removed from lower layers
    OPAQUE = "opaque"  # all that lower layers have below the folder `path` is removed


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, folder, link or removal in a layer or context.

    ``path`` is relative to the root, without a leading or trailing slash, in raw bytes;
    the root itself is ``b""``. ``mode`` holds the twelve permission bits. ``mtime`` is in
    whole seconds since 1970. ``link`` is a symlink's target as written, or, for a FILE that
    is a hard link, the path of the entry with the content. ``digest`` is the sha256 of a
    file's content, None where not yet known. ``xattrs`` are sorted (name, value) pairs.
    """

    path: bytes
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()
    digest: str | None = None


WHITEOUT = b".wh."
"""How the name of an entry begins that removes the rest of it below."""
OPAQUE = b".wh..wh..opq"
"""The name of an entry that removes all others in its folder below."""
RESERVED = b".wh..wh."
"""How names begin that remove nothing by themselves."""
NO_NAMES = frozenset({b"", b".", b".."})
"""What nothing in a folder is called."""
_KINDS = tuple(Kind)
_CODES = {kind: code for code, kind in enumerate(_KINDS)}
_REMOVALS = frozenset({_CODES[Kind.WHITEOUT], _CODES[Kind.OPAQUE]})
_WHITEOUT = _CODES[Kind.WHITEOUT]
_OPAQUE = _CODES[Kind.OPAQUE]
_HAS_DIGEST = 0x80
_MAGIC = b"pybuild-layer-index-1\n"
_COLUMNS = "BHIIqqq"  # kind, mode, uid, gid, size, mtime, offset
_MAX_ENTRIES = 10_000_000


class LayerIndex:
    """The entries of one layer, sorted by path, and where their content is in its tar.

    Entries are decoded when asked for; nothing but the sorted paths is held in another
    form, so that opening the index of a large image costs a few milliseconds. A path has at
    most one entry that is no removal; a WHITEOUT may stand before it and an OPAQUE behind.
    """

    __slots__ = ("_columns", "_digests", "_entries", "_links", "_offsets", "_paths", "_rare")

    def __init__(self, entries: Sequence[Entry] = (), offsets: Sequence[int] | None = None) -> None:
        """Index `entries`, in any order; ``offsets[i]`` is entry i's content in the tar, or -1."""
        where = [-1] * len(entries) if offsets is None else offsets
        order = sorted(range(len(entries)), key=lambda i: _sort_key(entries[i]))
        self._entries: list[Entry | None] = [entries[i] for i in order]
        self._paths = [entries[i].path for i in order]
        self._offsets = array("q", [where[i] for i in order])
        self._columns: tuple[array[int], ...] | None = None
        self._links: list[bytes] = []
        self._digests = b""
        self._rare: dict[int, tuple[tuple[int, int], tuple[tuple[str, bytes], ...]]] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Entry]:
        return (self._entry(i) for i in range(len(self._paths)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerIndex):
            return NotImplemented
        return self.entries == other.entries and self._offsets == other._offsets

    def __hash__(self) -> int:
        return hash((len(self._paths), self._paths[0] if self._paths else b""))

    @property
    def paths(self) -> Sequence[bytes]:
        """The paths of all entries, sorted; that of a folder may be there twice."""
        return self._paths

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, removals included, sorted by path."""
        return tuple(self)

    def get(self, path: bytes) -> Entry | None:
        """The entry at `path` that is no removal. A folder only implied by others has none."""
        i = self._find(path)
        return None if i < 0 else self._entry(i)

    def offset(self, path: bytes) -> int:
        """Where the content of the FILE `path` begins in the uncompressed tar.

        A hard link has its target's. -1 for what has no content here.
        """
        for _ in range(2):
            i = self._find(path)
            if i < 0:
                return -1
            if self._offsets[i] >= 0:
                return self._offsets[i]
            path = self._entry(i).link
        return -1

    def removes(self, path: bytes) -> bool:
        """Whether `path` itself is removed from the layers below."""
        return any(self._code(i) == _WHITEOUT for i in self._at(path))

    def is_opaque(self, path: bytes) -> bool:
        """Whether all that the layers below have under the folder `path` is removed."""
        return any(self._code(i) == _OPAQUE for i in self._at(path))

    def has_below(self, path: bytes) -> bool:
        """Whether anything but removals of names lies below `path`."""
        start, end = self._range_below(path)
        return any(self._code(i) != _WHITEOUT for i in range(start, end))

    def touches(self, path: bytes) -> bool:
        """Whether any entry, removals included, is at `path` or lies below it."""
        if not path:
            return bool(self._paths)
        start, count = bisect_left(self._paths, path), len(self._paths)
        if start < count and self._paths[start] == path:
            return True
        below = path + b"/"
        start = bisect_left(self._paths, below, start)
        return start < count and self._paths[start].startswith(below)

    def children(self, path: bytes) -> list[bytes]:
        """The names directly below `path` that this layer has, folders only implied included."""
        return [name for name, present in self._names(path).items() if present]

    def removed_children(self, path: bytes) -> list[bytes]:
        """The names directly below `path` that are removed from the layers below."""
        start, end = self._range_below(path)
        skip = len(path) + 1 if path else 0
        return [
            self._paths[i][skip:]
            for i in range(start, end)
            if self._code(i) == _WHITEOUT and b"/" not in self._paths[i][skip:]
        ]

    def _names(self, path: bytes) -> dict[bytes, bool]:
        """Names below `path`, and whether more than a removal stands there."""
        start, end = self._range_below(path)
        skip = len(path) + 1 if path else 0
        found: dict[bytes, bool] = {}
        i = start
        while i < end:
            name, slash, _ = self._paths[i][skip:].partition(b"/")
            if not slash:
                found[name] = found.get(name, False) or self._code(i) != _WHITEOUT
                i += 1
                continue
            # everything below the child lies together: look once whether it is there, go on
            child = self._paths[i][: skip + len(name)]
            if not found.get(name, False):
                found[name] = self.has_below(child)
            i = bisect_left(self._paths, child + b"0", i, end)
        return found

    def _at(self, path: bytes) -> range:
        start = end = bisect_left(self._paths, path)
        while end < len(self._paths) and self._paths[end] == path:
            end += 1
        return range(start, end)

    def _find(self, path: bytes) -> int:
        for i in self._at(path):
            if self._code(i) not in _REMOVALS:
                return i
        return -1

    def _range_below(self, path: bytes) -> tuple[int, int]:
        if not path:
            start = bisect_left(self._paths, b"\0")
            return start, len(self._paths)
        start = bisect_left(self._paths, path + b"/")
        return start, bisect_left(self._paths, path + b"0", start)  # "0" follows "/"

    def _code(self, i: int) -> int:
        if self._columns is not None:
            return self._columns[0][i] & ~_HAS_DIGEST
        entry = self._entries[i]
        assert entry is not None  # noqa: S101  (an index without columns holds every entry)
        return _CODES[entry.kind]

    def _entry(self, i: int) -> Entry:
        entry = self._entries[i]
        if entry is not None:
            return entry
        assert self._columns is not None  # noqa: S101  (see _code)
        kinds, modes, uids, gids, sizes, mtimes, _ = self._columns
        device, xattrs = self._rare.get(i, ((0, 0), ()))
        digest = None
        if kinds[i] & _HAS_DIGEST:
            digest = "sha256:" + self._digests[32 * i : 32 * i + 32].hex()
        entry = Entry(
            self._paths[i],
            _KINDS[kinds[i] & ~_HAS_DIGEST],
            modes[i],
            uids[i],
            gids[i],
            sizes[i],
            mtimes[i],
            self._links[i],
            device,
            xattrs,
            digest,
        )
        self._entries[i] = entry
        return entry

    def to_bytes(self) -> bytes:
        """The index as versioned bytes, the same for equal indexes; see :meth:`from_bytes`."""
        entries = self.entries
        kinds = (_CODES[e.kind] | (_HAS_DIGEST if e.digest else 0) for e in entries)
        columns = (
            kinds,
            (e.mode for e in entries),
            (e.uid for e in entries),
            (e.gid for e in entries),
            (e.size for e in entries),
            (e.mtime for e in entries),
            self._offsets,
        )
        parts = [
            _little_endian(array(code, column)).tobytes()
            for code, column in zip(_COLUMNS, columns, strict=True)
        ]
        parts += [
            b"\0".join(self._paths),
            b"\0".join(e.link for e in entries),
            b"".join(
                _pack_rare(i, e) for i, e in enumerate(entries) if e.xattrs or e.device != (0, 0)
            ),
        ]
        packed = zlib.compress(b"".join(struct.pack("<Q", len(p)) + p for p in parts), 1)
        digests = b"".join(bytes.fromhex(e.digest[7:]) if e.digest else bytes(32) for e in entries)
        head = struct.pack("<QQI", len(entries), len(packed), zlib.crc32(digests))
        return _MAGIC + head + packed + digests

    @classmethod
    def from_bytes(cls, data: bytes) -> LayerIndex:
        """The index that :meth:`to_bytes` wrote. Raises InvalidImage for anything else."""
        try:
            return cls._unpack(data)
        except (ValueError, IndexError, struct.error, zlib.error, EOFError) as error:
            raise InvalidImage("the stored index of a layer is damaged") from error

    @classmethod
    def _unpack(cls, data: bytes) -> LayerIndex:
        if not data.startswith(_MAGIC):
            raise ValueError("not a layer index of this version")
        body = len(_MAGIC) + struct.calcsize("<QQI")
        count, packed, check = struct.unpack_from("<QQI", data, len(_MAGIC))
        digests = data[body + packed :]
        if count > _MAX_ENTRIES or len(digests) != 32 * count or zlib.crc32(digests) != check:
            raise ValueError("wrong length or checksum")
        parts = _split(zlib.decompress(data[body : body + packed]))
        columns = []
        for code, part in zip(_COLUMNS, parts[:7], strict=True):
            column = array(code)
            column.frombytes(part)
            columns.append(_little_endian(column))
        paths, links, rare = parts[7:]
        index = cls()
        index._columns = tuple(columns)
        index._offsets = columns[6]
        index._paths = paths.split(b"\0") if count else []
        index._links = links.split(b"\0") if count else []
        index._entries = [None] * count
        index._digests = digests
        index._rare = dict(_unpack_rare(rare))
        lengths = [len(column) for column in columns] + [len(index._paths), len(index._links)]
        if any(length != count for length in lengths):
            raise ValueError("columns differ in length")
        if any(code & ~_HAS_DIGEST >= len(_KINDS) for code in set(columns[0])):
            raise ValueError("unknown kind of file")
        return index


OnIndex = Callable[[str, str, LayerIndex], object]
"""Takes the digest of a layer's blob, its diff id and its index."""


def _sort_key(entry: Entry) -> tuple[bytes, int]:
    kind = entry.kind  # compared by identity: by `match` it takes much longer, which tells
    if kind is Kind.WHITEOUT:
        return entry.path, 0
    return entry.path, 2 if kind is Kind.OPAQUE else 1


def _little_endian(column: array[int]) -> array[int]:
    if sys.byteorder == "big":
        column.byteswap()
    return column


def _split(body: bytes) -> list[bytes]:
    parts = []
    at = 0
    while at < len(body):
        (size,) = struct.unpack_from("<Q", body, at)
        at += 8
        if at + size > len(body):
            raise ValueError("truncated")
        parts.append(body[at : at + size])
        at += size
    if len(parts) != len(_COLUMNS) + 3:
        raise ValueError("wrong number of columns")
    return parts


def _pack_rare(i: int, entry: Entry) -> bytes:
    """Device numbers and extended attributes, which few entries have."""
    parts = [struct.pack("<IIIH", i, *entry.device, len(entry.xattrs))]
    for name, value in entry.xattrs:
        raw = name.encode("utf-8", "surrogateescape")
        parts += [struct.pack("<HI", len(raw), len(value)), raw, value]
    return b"".join(parts)


def _unpack_rare(
    body: bytes,
) -> Iterator[tuple[int, tuple[tuple[int, int], tuple[tuple[str, bytes], ...]]]]:
    at = 0
    while at < len(body):
        i, major, minor, count = struct.unpack_from("<IIIH", body, at)
        at += struct.calcsize("<IIIH")
        xattrs = []
        for _ in range(count):
            name_size, value_size = struct.unpack_from("<HI", body, at)
            at += struct.calcsize("<HI")
            name = body[at : at + name_size].decode("utf-8", "surrogateescape")
            xattrs.append((name, body[at + name_size : at + name_size + value_size]))
            at += name_size + value_size
        yield i, ((major, minor), tuple(xattrs))
