"""What is remembered of the files that a step read: small and quick for very many of them.

A row is a few bytes: kind, mode, owner, and eight bytes each of two hashes. Most files are the
same in two builds, so rows are compared as they are, and only those that differ are looked into.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

from pybuild.oci.layerindex import Entry, Kind
from pybuild.run.miss import Cause, CauseKind
from pybuild.values import dataclass

_KINDS = tuple(Kind)
_CODES = {kind: code for code, kind in enumerate(_KINDS)}
_HASH = 8
_NOTHING = bytes(_HASH)
_ROW = struct.Struct(f"<BHII{_HASH}s{_HASH}s")
_HEAD = struct.Struct("<II")
_DIGEST = 32
_MOST_BYTES = 64 * 1024 * 1024


class _Row(NamedTuple):
    kind: int
    mode: int
    uid: int
    gid: int
    content: bytes
    """Of a link, of where it leads."""
    rare: bytes
    """Extended attributes, and the numbers of a device."""


@dataclass(frozen=True, slots=True)
class FileRows:
    """Files by the path in what they were read from; what a step made up begins with a slash."""

    rows: dict[bytes, bytes]

    @property
    def digest(self) -> str:
        """The same for the same rows in the same order."""
        return _digest(self._raw())

    def packed(self) -> bytes:
        """The rows as bytes for :func:`unpack`."""
        return zlib.compress(self._raw(), 1)

    def _raw(self) -> bytes:
        paths = b"\0".join(self.rows)
        head = _HEAD.pack(len(self.rows), len(paths))
        return b"".join((head, paths, *self.rows.values()))


def rows_of(entries: Sequence[Entry], sources: Sequence[bytes | None]) -> FileRows:
    """The rows of `entries`, which were copied from `sources`."""
    rows = {}
    pack, from_hex, file = _ROW.pack, bytes.fromhex, Kind.FILE  # there may be very many
    for entry, source in zip(entries, sources, strict=True):
        if entry.digest is not None:
            content = from_hex(entry.digest[7 : 7 + 2 * _HASH])
        else:
            content = sha256(entry.link).digest()[:_HASH] if entry.link else _NOTHING
        rare = _NOTHING
        if entry.xattrs or entry.device != (0, 0):
            rare = sha256(repr((entry.xattrs, entry.device)).encode()).digest()[:_HASH]
        kind = 0 if entry.kind is file else _CODES[entry.kind]
        row = pack(kind, entry.mode, entry.uid, entry.gid, content, rare)
        rows[b"/" + entry.path if source is None else source] = row
    return FileRows(rows)


def unpack(packed: bytes, digest: str) -> FileRows | None:
    """The rows with this digest that were `packed`; None for anything else."""
    try:
        raw = zlib.decompressobj().decompress(packed, _MOST_BYTES)
        if _digest(raw) != digest:
            return None
        count, size = _HEAD.unpack_from(raw)
    except (zlib.error, struct.error):
        return None
    start = _HEAD.size + size
    if len(raw) != start + count * _ROW.size:
        return None
    paths = raw[_HEAD.size : start].split(b"\0") if count else []
    rows = [raw[at : at + _ROW.size] for at in range(start, len(raw), _ROW.size)]
    if len(paths) != count or any(row[0] >= len(_KINDS) for row in rows):
        return None
    return FileRows(dict(zip(paths, rows, strict=True)))


def differences(before: FileRows, after: FileRows, source: str) -> Iterator[Cause]:
    """What tells `after` from `before`: first what changed, then what is new, then what is gone."""
    old, new = before.rows, after.rows
    paths = sorted(path for path, row in new.items() if old.get(path, row) != row)
    changed = [(path, _row(old[path]), _row(new[path])) for path in paths]
    # what people change most comes first
    changed.sort(key=lambda each: each[1].content == each[2].content)
    for path, was, row in changed:
        yield from _changes(_shown(path, source), was, row, source)
    for path in sorted(new.keys() - old.keys()):
        yield Cause(CauseKind.FILE_ADDED, _shown(path, source), source=source)
    for path in sorted(old.keys() - new.keys()):
        yield Cause(CauseKind.FILE_REMOVED, _shown(path, source), source=source)


def _changes(name: str, old: _Row, new: _Row, source: str) -> Iterator[Cause]:
    if old.kind != new.kind:
        before, after = (_KINDS[row.kind].value for row in (old, new))
        yield Cause(CauseKind.FILE_TYPE, name, before, after, source)
        return
    if old.content != new.content:
        is_file = _KINDS[new.kind] is Kind.FILE
        yield Cause(CauseKind.FILE_CONTENT if is_file else CauseKind.FILE_LINK, name, source=source)
    if old.mode != new.mode:
        yield Cause(CauseKind.FILE_MODE, name, f"{old.mode:04o}", f"{new.mode:04o}", source)
    if (old.uid, old.gid) != (new.uid, new.gid):
        before, after = (f"{row.uid}:{row.gid}" for row in (old, new))
        yield Cause(CauseKind.FILE_OWNER, name, before, after, source)
    if old.rare != new.rare:
        yield Cause(CauseKind.FILE_ATTRIBUTES, name, source=source)


def _row(packed: bytes) -> _Row:
    return _Row(*_ROW.unpack(packed))


def _digest(raw: bytes) -> str:
    return sha256(raw).hexdigest()[:_DIGEST]


def _shown(path: bytes, source: str) -> str:
    text = path.decode("utf-8", "backslashreplace")
    # a path of a context is one that its reader has; all others begin at a root
    return text if not source and text else f"/{text.lstrip('/')}"
