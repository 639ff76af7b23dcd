from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable

import pytest

from pybuild.errors import InvalidImage
from pybuild.oci.compression import CHUNK, Compression, Decompressed, Packing, compressor, detect

TEXT = b"some text, again and again. " * 100_000


def compressed(compression: Compression, piece: int) -> bytes:
    stream = compressor(Packing(compression))
    parts = [stream.compress(TEXT[i : i + piece]) for i in range(0, len(TEXT), piece)]
    return b"".join([*parts, stream.flush()])


def all_of(plain: Decompressed) -> bytes:
    return b"".join(iter(lambda: plain.read(CHUNK), b""))


@pytest.mark.parametrize("compression", Compression)
def test_what_is_compressed_is_found_and_read_back(compression: Compression) -> None:
    blob = compressed(compression, 10_000)
    assert detect(blob[:6]) == {"GZIP": "gzip", "ZSTD": "zstd"}.get(compression.name)
    with Decompressed(io.BytesIO(blob)) as plain:
        parts = []
        while part := plain.read(10 * CHUNK):
            assert len(part) <= CHUNK
            parts.append(part)
    assert b"".join(parts) == TEXT


@pytest.mark.parametrize("compression", Compression)
def test_the_same_text_gives_the_same_bytes(compression: Compression) -> None:
    assert compressed(compression, 1 << 20) == compressed(compression, 1 << 20)


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress])
def test_archives_may_be_compressed_otherwise_and_layers_not(
    compress: Callable[[bytes], bytes],
) -> None:
    blob = compress(b"text")
    with Decompressed(io.BytesIO(blob), archive=True) as plain:
        assert plain.read(100) == b"text"
    with Decompressed(io.BytesIO(blob)) as plain:
        assert all_of(plain) == blob


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_stream_that_ends_early_is_refused(compress: Callable[[bytes], bytes]) -> None:
    blob = compress(TEXT)[:-20]
    with Decompressed(io.BytesIO(blob), archive=True) as plain, pytest.raises(InvalidImage):
        all_of(plain)


def test_skippable_frames_are_zstd_too() -> None:
    assert detect(b"\x50\x2a\x4d\x18\0\0") == "zstd"
    assert detect(b"") is None
    assert detect(b"FROM x") is None


def test_gzip_begins_with_a_few_bytes_alone_because_isal_would_hash_its_own_address() -> None:
    text = b"0123456789 and so on, and so on"
    for pieces in ([text], [text[:5], text[5:]], [bytes([byte]) for byte in text]):
        stream = compressor(Packing(Compression.GZIP))
        packed = b"".join([*map(stream.compress, pieces), stream.flush()])
        begun = packed.index(b"\0\0\xff\xff") + 4  # a sync flush (RFC 1951, 3.2.4)
        assert zlib.decompressobj(wbits=31).decompress(packed[:begun]) == text[:16]
        assert gzip.decompress(packed) == text


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 300, 5000])
def test_short_streams_are_packed_whole(size: int) -> None:
    stream = compressor(Packing(Compression.GZIP))
    assert gzip.decompress(stream.compress(TEXT[:size]) + stream.flush()) == TEXT[:size]
