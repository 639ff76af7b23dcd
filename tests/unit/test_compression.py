from __future__ import annotations

import bz2
import gzip
import io
import lzma
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
