"""Bytes laid out like what a reader of stored or received bytes takes, with hostile fields."""

from __future__ import annotations

import struct

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from pybuild.oci.tarformat import BLOCK

_PATHS = st.one_of(
    st.lists(
        st.sampled_from(
            [b"a", b"b", b"c", b".", b"..", b"", b".wh.a", b".wh..wh..opq", b".wh..wh.x", b"\xff"]
        ),
        max_size=4,
    ).map(b"/".join),
    st.sampled_from([b"n" * 99, b"n" * 100, b"n/" * 80, b"n" * 256, b"a\\b", b"a\nb"]),
)


def _number(width: int) -> SearchStrategy[bytes]:
    """A number field of a tar header: octal, base-256, or neither."""
    small = st.integers(0, 0o7777).map(lambda n: b"%0*o\0" % (width - 1, n))
    wide = st.integers(-(1 << 40), 1 << 70).map(
        lambda n: (n % (1 << (8 * width)) | 0x80 << (8 * (width - 1))).to_bytes(width, "big")
    )
    odd = st.sampled_from([b"", b" 1 ", b"7" * width, b"-1", b"8", b"1\0" + b"9", b"\xff" * width])
    return st.integers(0, 19).flatmap(lambda n: [wide, odd, small][min(n, 2)])


_SIZES = st.one_of(
    *[st.integers(0, 1100).map(lambda n: (n, b"%011o\0" % n))] * 5,
    st.tuples(st.integers(0, 600), _number(12)),
)
_TYPES = st.sampled_from(b"0001122233445567" * 3 + b"\0SVDMNAXgxLK\xff8")
_MAGICS = st.sampled_from(
    [b"ustar\x0000", b"ustar\x0000", b"ustar\x0000", b"ustar  \0", bytes(8), b"ustar\0\xff\xff"]
)
_TAILS = st.sampled_from([b"", b"", b"", b"tar\0"])


def _field(value: bytes, width: int) -> bytes:
    return value[:width].ljust(width, b"\0")


@st.composite
def _header(draw: DrawFn, name: bytes, link: bytes, kind: int, size: bytes) -> bytes:
    numbers = [draw(_number(8)) for _ in range(3)]
    block = b"".join(
        [
            _field(name, 100),
            *(_field(number, 8) for number in numbers),
            _field(size, 12),
            _field(draw(_number(12)), 12),
            b" " * 8,
            bytes([kind]),
            _field(link, 100),
            draw(_MAGICS),
            bytes(64),
            *(_field(draw(_number(8)), 8) for _ in range(2)),
            _field(draw(st.sampled_from([b"", b"", b"a", b"../b", b"p" * 155])), 155),
        ]
    )
    block = _field(block, BLOCK - 4) + _field(draw(_TAILS), 4)
    sums = b"%06o\0 " % sum(block)
    return block[:148] + sums + block[156:]


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


_PAX_KEYS = [
    b"path",
    b"linkpath",
    b"size",
    b"uid",
    b"gid",
    b"mtime",
    b"GNU.sparse.major",
    b"",
    b"x",
]
_PAX_KEYS += [b"SCHILY.xattr.user.a", b"SCHILY.xattr.trusted.overlay.opaque", b"SCHILY.xattr."]
_PAX_KEYS += [b"SCHILY.xattr.user.overlay.redirect", b"SCHILY.xattr." + b"k" * 256, b"hdrcharset"]
_PAX_VALUES = st.one_of(
    _PATHS,
    st.integers(0, 999).map(lambda n: b"%d" % n),
    st.integers(-(1 << 66), 1 << 66).map(lambda n: b"%d" % n),
    st.sampled_from([b"1.5", b"-1.25", b"1e3", b"1_0", b" 1", b"9" * 25, b"\0", b"\xff", b"0x1"]),
)
_WRONG_LENGTHS = st.sampled_from([b"0", b"1", b"99", b"-5", b"9" * 11, b"", b"x", b"+7", b"07"])


@st.composite
def _pax_record(draw: DrawFn) -> bytes:
    rest = b" " + draw(st.sampled_from(_PAX_KEYS)) + b"=" + draw(_PAX_VALUES) + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    wrong = draw(st.none() | _WRONG_LENGTHS) if draw(st.integers(0, 15)) == 15 else None
    return (b"%d" % length if wrong is None else wrong) + rest


@st.composite
def _member(draw: DrawFn) -> bytes:
    """A header with its content, which may be shorter or longer than the header says."""
    length, size = draw(_SIZES)
    kind = draw(_TYPES)
    if kind in b"xg":
        body = b"".join(draw(st.lists(_pax_record(), max_size=4)))
    elif kind in b"LK":
        body = draw(_PATHS) + b"\0"
    elif kind in b"07\0":
        body = b"x" * length
    else:
        body = b"" if draw(st.booleans()) else b"x" * length
    if kind in b"xgLK" and draw(st.integers(0, 3)):
        size = b"%011o\0" % len(body)
    return draw(_header(draw(_PATHS), draw(_PATHS), kind, size)) + _padded(body)


@st.composite
def _described_member(draw: DrawFn) -> bytes:
    """A member with the extended headers that come before one."""
    before = []
    for _ in range(draw(st.integers(0, 2))):
        kind = draw(st.sampled_from(b"xxxLKg"))
        if kind in b"xg":
            body = b"".join(draw(st.lists(_pax_record(), min_size=1, max_size=4)))
        else:
            body = draw(_PATHS) + draw(st.sampled_from([b"\0", b"", b"\0rest"]))
        head = draw(_header(b"././@LongLink", b"", kind, b"%011o\0" % len(body)))
        before.append(head + _padded(body))
    return b"".join(before) + draw(_member())


_ENDS = st.sampled_from(
    [bytes(2 * BLOCK), bytes(2 * BLOCK), bytes(BLOCK), b"", bytes(9 * BLOCK), bytes(BLOCK) + b"x"]
)


@st.composite
def _tar(draw: DrawFn) -> bytes:
    tar = b"".join(draw(st.lists(_described_member(), max_size=6))) + draw(_ENDS)
    if draw(st.integers(0, 7)) == 0:
        tar = tar[: draw(st.integers(0, len(tar)))]
    return tar


LAYERS = _tar()
"""Tars of layers: odd names, numbers, types, PAX records and GNU names; some are cut off."""

_ROWS = "BHIIqqq"


@st.composite
def _index(draw: DrawFn) -> bytes:
    count = draw(st.integers(0, 6))
    parts = []
    for column in _ROWS:
        bits = 8 * struct.calcsize(f"<{column}")
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if column == "q" else (0, 1 << bits)
        numbers = st.integers(0, 9)
        if column != "B" or draw(st.integers(0, 3)) == 0:
            numbers |= st.integers(low, high - (column != "q"))
        rows = draw(st.lists(numbers, min_size=count, max_size=count))
        parts.append(b"".join(struct.pack(f"<{column}", row) for row in rows))
    names = st.lists(_PATHS, min_size=count, max_size=count)
    parts += [b"\0".join(draw(names)), b"\0".join(draw(names))]  # paths and links
    parts.append(b"".join(draw(st.lists(_rare(count), max_size=2))))
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(parts) - 1))
        parts[at] = draw(st.binary(max_size=24))
    packed = b"".join(struct.pack("<Q", len(part)) + part for part in parts)
    if draw(st.integers(0, 7)) == 0:
        packed = packed[: draw(st.integers(0, len(packed)))] + draw(st.binary(max_size=9))
    claimed = count if draw(st.integers(0, 5)) else draw(st.integers(0, 255))
    return bytes([claimed]) + packed


@st.composite
def _rare(draw: DrawFn, count: int) -> bytes:
    """A row of device numbers and extended attributes, perhaps for an entry that isn't there."""
    numbers = st.integers(0, (1 << 32) - 1)
    row = draw(st.integers(0, max(count, 1)) | numbers)
    names = draw(st.lists(st.binary(max_size=4), max_size=2))
    claimed = draw(st.just(len(names)) | st.integers(0, 65535))
    packed = struct.pack("<IIIH", row, draw(numbers), draw(numbers), claimed)
    for name in names:
        value = draw(st.binary(max_size=4))
        size = draw(st.just(len(value)) | numbers)
        packed += struct.pack("<HI", len(name), size) + name + value
    return packed


INDEXES = _index()
"""The columns of a stored index, uncompressed, behind the number of rows: see `readers`."""
