"""The tar format, both ways: POSIX ustar with PAX records, and GNU's long names when reading.

After POSIX.1-2024 `pax`, "ustar Interchange Format" and "pax Header Block"; numbers and
names too large for them as in GNU tar and star. Where readers differ, Go's archive/tar is
followed, for that is what unpacks the same layers elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Protocol

from pybuild.errors import InvalidImage
from pybuild.values import dataclass, field

BLOCK = 512
_READ = 1024 * 1024
_MAX_SPECIAL = 1024 * 1024  # PAX header or long name, as in Go
_MAX_OCTAL_7 = 0o7777777
_MAX_OCTAL_11 = 0o77777777777
_XATTR = "SCHILY.xattr."
_MAX_XATTR_NAME = 255  # XATTR_NAME_MAX
_MAJORS, _MINORS = 1 << 12, 1 << 20
_NO_DEVICE = b"0000000\0" * 2
_ZERO = bytes(BLOCK)
_PLAIN_END = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + _NO_DEVICE + bytes(BLOCK - 345)
_PLAIN_SUM = 8 * 32 + sum(_PLAIN_END)
_OCTAL = re.compile(rb"[0-7]*")
# mode, owner, group, size and time, as nearly all programs write them
_NUMBERS = re.compile(rb"([0-7]{7})\0([0-7]{7})\0([0-7]{7})\0([0-7]{11})\0([0-7]{11})[\0 ]")
_TIME = re.compile(r"(-?)(\d{1,18})(?:\.(\d*))?")
_HEADER_ONLY = frozenset(b"123456")


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a tar: ``name`` and ``link`` as written, ``type`` the type flag's byte.

    ``offset`` is where its content begins in the tar. A name in the old format's manner of
    folders has type ``5`` already.
    """

    name: bytes
    type: int
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()
    offset: int = -1


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tar may cost. Sizes in bytes; ``compressed_size`` is the blob's, where known."""

    entries: int = 500_000
    name: int = 4096
    metadata: int = 96 * 1024 * 1024
    """Names, links and extended attributes of all entries together."""
    total: int = 256 * 1024**3
    compressed_size: int | None = None
    ratio: int = 1100
    """Uncompressed to compressed, applied beyond 1 GiB; deflate's own limit is 1032."""


def header(member: Member) -> bytes:
    """The header blocks of a member: PAX records only where ustar can't hold it."""
    records: list[tuple[bytes, bytes]] = []
    prefix, name = _split_name(member.name)
    if name is None:
        records.append((b"path", member.name))
        prefix, name = b"", _ascii(member.name)[:100]
    link = member.link
    if len(link) > 100 or not link.isascii():
        records.append((b"linkpath", link))
        link = _ascii(link)[:100]
    uid = _number(records, b"uid", member.uid, _MAX_OCTAL_7)
    gid = _number(records, b"gid", member.gid, _MAX_OCTAL_7)
    size = _number(records, b"size", member.size, _MAX_OCTAL_11)
    mtime = _number(records, b"mtime", member.mtime, _MAX_OCTAL_11)
    for key, value in member.xattrs:
        records.append(((_XATTR + key).encode("utf-8", "surrogateescape"), value))
    major, minor = member.device
    device = _NO_DEVICE if member.device == (0, 0) else b"%07o\0%07o\0" % (major, minor)
    numbers = (member.mode, uid, gid, size, mtime)
    block = _block(name, numbers, member.type, link=link, device=device, prefix=prefix)
    if not records:
        return block
    body = b"".join(_record(key, value) for key, value in sorted(records))
    pax_name = b"PaxHeaders.0/" + name.rstrip(b"/").rpartition(b"/")[2][:80]
    pax = _block(pax_name, (0o644, 0, 0, len(body), 0), ord("x"))
    return pax + body + bytes(-len(body) % BLOCK) + block


def plain_header(name: bytes, numbers: tuple[int, int, int, int, int]) -> bytes | None:
    """What `header` gives for a regular file with nothing special, in a third of the time.

    `numbers` are mode, uid, gid, size and mtime. None if `header` has to be asked.
    """
    _, uid, gid, size, mtime = numbers
    is_plain = len(name) <= 100 and name.isascii() and 0 <= mtime <= _MAX_OCTAL_11
    if not is_plain or uid > _MAX_OCTAL_7 or gid > _MAX_OCTAL_7 or size > _MAX_OCTAL_11:
        return None
    start = name.ljust(100, b"\0") + b"%07o\0%07o\0%07o\0%011o\0%011o\0" % numbers
    return b"%b%06o\0 %b" % (start, sum(start) + _PLAIN_SUM, _PLAIN_END)


def _block(
    name: bytes,
    numbers: tuple[int, int, int, int, int],
    kind: int,
    *,
    link: bytes = b"",
    device: bytes = _NO_DEVICE,
    prefix: bytes = b"",
) -> bytes:
    start = name.ljust(100, b"\0") + b"%07o\0%07o\0%07o\0%011o\0%011o\0" % numbers
    end = b"%c%b%b%b%b" % (kind, link.ljust(100, b"\0"), b"ustar\x0000" + bytes(64), device, prefix)
    checksum = sum(start) + 8 * 32 + sum(end)
    return (start + b"%06o\0 " % checksum + end).ljust(BLOCK, b"\0")


def _split_name(name: bytes) -> tuple[bytes, bytes | None]:
    """Prefix and name of ustar; name None where they don't hold it."""
    if not name.isascii():
        return b"", None
    if len(name) <= 100:
        return b"", name
    cut = name.rfind(b"/", 0, 156)
    if cut <= 0 or len(name) - cut - 1 > 100 or cut == len(name) - 1:
        return b"", None
    return name[:cut], name[cut + 1 :]


def _ascii(name: bytes) -> bytes:
    return bytes(c for c in name if c < 0x80)


def _number(records: list[tuple[bytes, bytes]], key: bytes, value: int, largest: int) -> int:
    if 0 <= value <= largest:
        return value
    records.append((key, b"%d" % value))
    return 0


def _record(key: bytes, value: bytes) -> bytes:
    """A PAX record, which begins with its own length."""
    rest = len(key) + len(value) + 3
    size = rest + len(str(rest))
    if len(str(size)) != len(str(rest)):
        size = rest + len(str(size))
    return b"%d %b=%b\n" % (size, key, value)


class Readable(Protocol):
    """What can be read: fewer bytes than asked for may come, none only at the end."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(slots=True)
class _Pending:
    """What came before a header and belongs to it."""

    pax: dict[bytes, bytes] = field(default_factory=dict)
    name: bytes | None = None
    link: bytes | None = None


class TarReader:
    """Reads a tar once, forward. Everything in it is checked; InvalidImage for what is wrong.

    Iterate over it for the members; between two, :meth:`content` gives the bytes of the
    first, and what wasn't asked for is skipped. After the last one the stream has been read
    to its end. `observe` sees all bytes in order, headers and padding too.
    """

    def __init__(
        self,
        stream: Readable,
        limits: Limits | None = None,
        observe: Callable[[bytes], object] | None = None,
    ) -> None:
        self._stream = stream
        self._limits = limits or Limits()
        self._observe = observe
        self._ahead = memoryview(b"")
        self._position = 0  # of the first byte of _ahead
        self._read = 0
        self._left = 0
        self._padding = 0
        self._entries = 0
        self._metadata = 0
        compressed = self._limits.compressed_size
        self._total = self._limits.total
        if compressed is not None:
            self._total = min(self._total, max(1024**3, compressed * self._limits.ratio))

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            self._left = member.size
            self._padding = -member.size % BLOCK
            yield member

    def content(self) -> Iterator[memoryview]:
        """The content of the member that the iteration is at, in pieces."""
        while self._left:
            if not self._ahead:
                self._fill()
            piece = self._ahead[: self._left]
            self._ahead = self._ahead[len(piece) :]
            self._position += len(piece)
            self._left -= len(piece)
            yield piece

    def _next(self) -> Member | None:
        pending = _Pending()
        while True:
            for _ in self.content():
                pass
            self._skip_padding()
            block = self._block()
            if block is None:
                if pending != _Pending():
                    raise InvalidImage("the tar ends inside of an entry")
                return None
            kind = block[156]
            if kind in b"xgLK":
                self._special(kind, block, pending)
                continue
            return self._member(block, pending)

    def _block(self) -> bytes | None:
        """The next header; None at the end of the tar."""
        block = self._exactly(BLOCK, at_end=True)
        if block is None:
            return None
        if block == _ZERO:
            block = self._exactly(BLOCK, at_end=True)
            if block not in (None, _ZERO):
                raise InvalidImage("a tar header is broken")
            self._finish()
            return None
        if not is_header(block):
            raise InvalidImage("a tar header is broken: its checksum is wrong")
        return block

    def _special(self, kind: int, block: bytes, pending: _Pending) -> None:
        size = _number_of(block[124:136])
        if not 0 <= size <= _MAX_SPECIAL:
            raise InvalidImage("a tar's extended header is larger than 1 MiB")
        body = self._exactly(size) or b""
        self._padding = -size % BLOCK
        self._count(0, size)
        if kind == ord("x"):
            pending.pax = _parse_pax(body)
        elif kind == ord("L"):
            pending.name = body.partition(b"\0")[0]
        elif kind == ord("K"):
            pending.link = body.partition(b"\0")[0]
        else:
            _parse_pax(body)  # a global header is checked, and without effect as in Go

    def _member(self, block: bytes, pending: _Pending) -> Member:
        pax = pending.pax
        kind = block[156] or ord("0")
        name, link = _text(block[:100]), _text(block[157:257])
        ustar = block[257:263] == b"ustar\0"
        if ustar:
            prefix = _text(block[345:476] if block[508:512] == b"tar\0" else block[345:500])
            name = prefix + b"/" + name if prefix else name
        name = pax.get(b"path") or name
        link = pax.get(b"linkpath") or link
        name = name if pending.name is None else pending.name
        link = link if pending.link is None else pending.link
        if block[156] == 0 and name.endswith(b"/"):
            kind = ord("5")
        if kind == ord("S") or any(key.startswith(b"GNU.sparse.") for key in pax):
            raise InvalidImage("the tar has a sparse entry, which isn't supported")
        mode, uid, gid, size, mtime = _numbers_of(block, pax)
        if size < 0:
            raise InvalidImage("a tar entry has a negative size")
        if size > self._total:
            raise InvalidImage("a tar entry is larger than the limit")
        if kind in _HEADER_ONLY:
            size = 0
        if b"\0" in name or b"\0" in link:
            raise InvalidImage("a tar entry's name holds a zero byte")
        if len(name) > self._limits.name or len(link) > self._limits.name:
            raise InvalidImage("a tar entry's name is too long")
        device = (0, 0)
        if kind in b"34" and (ustar or block[257:263] == b"ustar "):
            device = _number_of(block[329:337]), _number_of(block[337:345])
            if not (0 <= device[0] < _MAJORS and 0 <= device[1] < _MINORS):
                raise InvalidImage("a tar entry has a device number that Linux doesn't have")
        xattrs = _xattrs(pax) if pax else ()
        self._count(1, len(name) + len(link) + sum(len(key) + len(value) for key, value in xattrs))
        return Member(
            name,
            kind,
            mode & 0o7777,
            _identity(uid),
            _identity(gid),
            size,
            mtime,
            link,
            device,
            xattrs,
            self._position,
        )

    def _count(self, entries: int, metadata: int) -> None:
        self._entries += entries
        self._metadata += metadata
        if self._entries > self._limits.entries:
            raise InvalidImage(f"the tar has more than {self._limits.entries} entries")
        if self._metadata > self._limits.metadata:
            raise InvalidImage("the names and attributes in the tar are too large")

    def _skip_padding(self) -> None:
        if self._padding:
            padding, self._padding = self._padding, 0
            # the last padding may be missing, as in tars that Go reads
            self._exactly(padding, at_end=True)

    def _finish(self) -> None:
        """Read what follows the end mark: zeros, to fill a tape's block."""
        while self._ahead or self._fill(at_end=True):
            if self._ahead.tobytes().strip(b"\0"):
                raise InvalidImage("there is something after the end of the tar")
            self._position += len(self._ahead)
            self._ahead = self._ahead[:0]

    def _exactly(self, size: int, *, at_end: bool = False) -> bytes | None:
        """The next `size` bytes. With `at_end`, None if the stream ends before the first."""
        if len(self._ahead) < size:
            parts = [bytes(self._ahead)]
            have = len(self._ahead)
            while have < size:
                if not self._fill(at_end=at_end and have == 0):
                    self._ahead = memoryview(b"")
                    return None
                parts.append(bytes(self._ahead))
                have += len(self._ahead)
            self._ahead = memoryview(b"".join(parts))
        found = bytes(self._ahead[:size])
        self._ahead = self._ahead[size:]
        self._position += size
        return found

    def _fill(self, *, at_end: bool = False) -> bool:
        """Replace what is ahead, which has been used, by the next bytes of the stream."""
        piece = self._stream.read(_READ)
        if not piece:
            if at_end:
                return False
            raise InvalidImage("the tar is truncated")
        self._read += len(piece)
        if self._read > self._total:
            raise InvalidImage(
                f"the tar is larger than {self._total} bytes",
                hint="a small blob that unpacks to so much is taken for an attack",
            )
        if self._observe is not None:
            self._observe(piece)
        self._ahead = memoryview(piece)
        return True


def is_header(block: bytes) -> bool:
    """Whether `block` is a tar header by its length and checksum. Zeros are none."""
    if len(block) != BLOCK:
        return False
    try:
        stored = _number_of(block[148:156])
    except InvalidImage:
        return False
    unsigned = sum(block) - sum(block[148:156]) + 8 * 32
    if stored == unsigned:
        return block != _ZERO
    # some old programs summed the bytes as signed
    return stored == unsigned - 256 * sum(c > 127 for c in block[:148] + block[156:])


def _text(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


def _numbers_of(block: bytes, pax: dict[bytes, bytes]) -> tuple[int, int, int, int, int]:
    """Mode, owner, group, size and time of a header."""
    plain = None if pax else _NUMBERS.match(block, 100)
    if plain is not None:
        mode, uid, gid, size, mtime = plain.groups()
        return int(mode, 8), int(uid, 8), int(gid, 8), int(size, 8), int(mtime, 8)
    return (
        _number_of(block[100:108]),
        _pax_number(pax, b"uid", block[108:116]),
        _pax_number(pax, b"gid", block[116:124]),
        _pax_number(pax, b"size", block[124:136]),
        _pax_time(pax, block[136:148]),
    )


def _number_of(raw: bytes) -> int:
    """A number of a header: octal digits, or GNU's base-256."""
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big", signed=False) & ~(0x80 << (8 * (len(raw) - 1)))
        if raw[0] & 0x40:
            value -= 1 << (8 * len(raw) - 1)
        if not -(1 << 63) <= value < 1 << 63:
            raise InvalidImage("a number in a tar header is too large")
        return value
    digits = raw.strip(b" \0").partition(b"\0")[0]
    if not _OCTAL.fullmatch(digits):
        raise InvalidImage("a number in a tar header is broken")
    return int(digits, 8) if digits else 0


def _identity(number: int) -> int:
    if not 0 <= number < 1 << 32:
        raise InvalidImage(f"a tar entry has the owner or group {number}")
    return number


def _pax_number(pax: dict[bytes, bytes], key: bytes, raw: bytes) -> int:
    value = pax.get(key)
    if not value:
        return _number_of(raw)
    digits = value.removeprefix(b"-")
    if len(digits) > 20 or not digits.isdigit():
        raise InvalidImage(f"the tar's {key.decode()} {value[:40]!r} is no number")
    return int(value)


def _pax_time(pax: dict[bytes, bytes], raw: bytes) -> int:
    """Whole seconds, rounded down."""
    value = pax.get(b"mtime")
    if not value:
        return _number_of(raw)
    found = _TIME.fullmatch(value.decode("ascii", "replace"))
    if found is None:
        raise InvalidImage(f"the tar's mtime {value[:40]!r} is no time")
    sign, whole, fraction = found.groups()
    if not sign:
        return int(whole)
    return -int(whole) - (1 if (fraction or "").strip("0") else 0)


def _xattrs(pax: dict[bytes, bytes]) -> tuple[tuple[str, bytes], ...]:
    prefix = _XATTR.encode()
    found = [
        (key[len(prefix) :].decode("utf-8", "surrogateescape"), value)
        for key, value in pax.items()
        if key.startswith(prefix)
    ]
    if any(len(key) - len(prefix) > _MAX_XATTR_NAME for key in pax if key.startswith(prefix)):
        raise InvalidImage("a tar entry has an extended attribute with too long a name")
    return tuple(sorted(found))


def _parse_pax(body: bytes) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 12)
        digits = body[at:space] if space > at else b""
        if not digits.isdigit():
            raise InvalidImage("a tar's PAX header is broken")
        end = at + int(digits)
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if end > len(body) or end <= space + 1 or body[end - 1 : end] != b"\n" or not equals:
            raise InvalidImage("a tar's PAX header is broken")
        if b"\0" in key:
            raise InvalidImage("a tar's PAX header is broken")
        records[key] = value
        at = end
    return records
