"""The compressors of layers and archives, told apart by their first bytes.

Compressed bytes are deterministic: one level, no name and no time in the header.
"""

from __future__ import annotations

import io
import zlib
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self, cast

from pybuild.errors import InvalidImage
from pybuild.oci.descriptor import OCI_LAYER_GZIP, OCI_LAYER_TAR, OCI_LAYER_ZSTD
from pybuild.values import dataclass

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from 3.12 on

CHUNK = 1024 * 1024
"""How much is decompressed at a time, in bytes."""

HEAD = 16
"""How many bytes a stream of gzip compresses by themselves first."""

_ZSTD_LEVEL = 3
_GZIP_LEVEL = 1
_WITH_GZIP_HEADER = 31


class Compression(Enum):
    """How the tar of a layer is stored; the value is its OCI media type."""

    NONE = OCI_LAYER_TAR
    GZIP = OCI_LAYER_GZIP
    ZSTD = OCI_LAYER_ZSTD

    @property
    def media_type(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Packing:
    """A compression and its level; None is the default level, whose bytes every build shares.

    Levels are 0 to 9 for gzip, as zlib has them, and 1 to 22 for zstd.
    """

    compression: Compression = Compression.GZIP
    level: int | None = None


def compression_of(media_type: str) -> Compression:
    """How a layer of this media type, OCI's or Docker's, is compressed."""
    if media_type.endswith("gzip"):
        return Compression.GZIP
    return Compression.ZSTD if media_type.endswith("zstd") else Compression.NONE


class Compressor(Protocol):
    """One compressed stream: bytes in, bytes out."""

    def compress(self, data: bytes | bytearray | memoryview, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes | bytearray | memoryview, /) -> bytes:
        return bytes(data)

    def flush(self) -> bytes:
        return b""


class _Gzip:
    """isal's fast gzip, kept from looking at memory addresses.

    Where a stream begins with more than a few bytes, ISA-L 2.32 files its third byte under a
    hash of the stream's own address, so that a match is found, or not, by chance
    (``.write_first_byte`` of igzip_icf_body_h1_gr_bt.asm takes the wrong register). Its code
    for the ends of streams is sound, so the first bytes are flushed alone.
    """

    def __init__(self) -> None:
        from isal import isal_zlib  # noqa: PLC0415  (loaded when a layer is written)

        self._stream = isal_zlib.compressobj(_GZIP_LEVEL, wbits=_WITH_GZIP_HEADER)
        self._sync = isal_zlib.Z_SYNC_FLUSH
        self._head: bytearray | None = bytearray()

    def compress(self, data: bytes | bytearray | memoryview, /) -> bytes:
        if self._head is None:
            return self._stream.compress(data)
        self._head += data
        return b"" if len(self._head) < HEAD else self._begun()

    def flush(self) -> bytes:
        return self._begun() + self._stream.flush()

    def _begun(self) -> bytes:
        if self._head is None:
            return b""
        head, rest, self._head = self._head[:HEAD], self._head[HEAD:], None
        first = self._stream.compress(head) + self._stream.flush(self._sync)
        return first + self._stream.compress(rest) if rest else first


def gzip_version() -> bytes:
    """What is the same as long as gzip's default level makes the same bytes."""
    import isal  # noqa: PLC0415  (loaded when a layer is written)

    return f"isal {isal.ISAL_VERSION} level {_GZIP_LEVEL}\n".encode()


def compressor(packing: Packing) -> Compressor:
    """A new stream that packs so. Raises ValueError for a level out of range."""
    level = packing.level
    match packing.compression:
        case Compression.NONE:
            return _Plain()
        case Compression.GZIP if level is not None:
            return zlib.compressobj(level, wbits=_WITH_GZIP_HEADER)
        case Compression.GZIP:
            return _Gzip()
        case Compression.ZSTD:
            return cast("Compressor", _zstd().ZstdCompressor(level=level or _ZSTD_LEVEL))


def detect(head: bytes) -> str | None:
    """The compressor that wrote a stream beginning with `head` (6 bytes do), None if none.

    One of ``gzip``, ``zstd``, ``bzip2``, ``xz``.
    """
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith(b"\x28\xb5\x2f\xfd") or (
        len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F
    ):
        return "zstd"
    if head.startswith(b"BZh"):
        return "bzip2"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    return None


class Decompressed:
    """A readable stream of the uncompressed bytes of `stream`, whatever compressed them.

    Never asks for more than :data:`CHUNK` bytes at a time, so that a bomb stays small.
    bzip2 and xz are read only where `archive` is set: layers know them not. Truncated or
    broken input raises InvalidImage; errors of `stream` itself pass. Closing leaves
    `stream` open.
    """

    def __init__(self, stream: BinaryIO, *, archive: bool = False) -> None:
        self._source = _Source(stream)
        kind = detect(self._source.peek(6))
        self._broken: tuple[type[Exception], ...] = (EOFError,)
        match kind:
            case "gzip":
                from isal import igzip, igzip_lib  # noqa: PLC0415  (loaded when a layer is read)

                unzipped = igzip.IGzipFile(fileobj=self._source, mode="rb")  # type: ignore[no-untyped-call]
                self._reader = cast("BinaryIO", unzipped)
                self._broken = (EOFError, igzip.BadGzipFile, cast("Any", igzip_lib).IsalError)
            case "zstd":
                zstd = _zstd()
                self._reader = cast("BinaryIO", zstd.ZstdFile(self._source, "rb"))
                self._broken = (EOFError, zstd.ZstdError)
            case "bzip2" if archive:
                import bz2  # noqa: PLC0415  (few archives need it)

                # bz2 and lzma say OSError and ValueError for broken input as well
                self._reader = cast("BinaryIO", bz2.BZ2File(cast("BinaryIO", self._source)))
                self._broken = (EOFError, OSError, ValueError)
            case "xz" if archive:
                import lzma  # noqa: PLC0415  (as above)

                opened = lzma.open(cast("BinaryIO", self._source))  # noqa: SIM115  (closed by close)
                self._reader = cast("BinaryIO", opened)
                self._broken = (EOFError, lzma.LZMAError, ValueError)
            case _:
                self._reader = cast("BinaryIO", self._source)
        self.kind = kind

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, at most :data:`CHUNK`; empty only at the end."""
        try:
            return self._reader.read(min(size, CHUNK))
        except self._broken as error:
            if self._source.failed:
                raise
            raise InvalidImage(f"the {self.kind} stream is broken: {error}") from error

    def close(self) -> None:
        if cast("object", self._reader) is not self._source:
            self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Source(io.RawIOBase):
    """`stream` with a few bytes of look-ahead, remembering whether it failed itself."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._ahead = b""
        self.failed = False

    def peek(self, size: int) -> bytes:
        while len(self._ahead) < size:
            more = self._next(size - len(self._ahead))
            if not more:
                break
            self._ahead += more
        return self._ahead

    def read(self, size: int = -1, /) -> bytes:
        if not self._ahead:
            return self._next(size)
        cut = len(self._ahead) if size < 0 else size
        found, self._ahead = self._ahead[:cut], self._ahead[cut:]
        return found

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        found = self.read(len(view))
        view[: len(found)] = found
        return len(found)

    def readable(self) -> bool:
        return True

    def _next(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except BaseException:
            self.failed = True
            raise


def _zstd() -> Any:
    """The zstd module: the standard library's from 3.14 on, else its backport."""
    try:
        from compression import zstd  # type: ignore[import-not-found]  # noqa: PLC0415
    except ImportError:
        from backports import zstd  # noqa: PLC0415
    return zstd
