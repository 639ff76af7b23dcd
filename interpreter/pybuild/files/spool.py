"""A temporary file without a name, whose parts are read by several threads."""

from __future__ import annotations

import io
import threading
import weakref
from typing import TYPE_CHECKING, BinaryIO, Self, cast

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from 3.12 on


class Spool:
    """Written once from its beginning, then read in slices. A context manager over `close`."""

    def __init__(self) -> None:
        from tempfile import TemporaryFile  # noqa: PLC0415 - few contexts are archives

        self._file = TemporaryFile()  # noqa: SIM115  (closed by close)
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, self._file.close)
        """Give the disk space back. Idempotent, and done at the latest with the last reader."""

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def open(self, offset: int, size: int) -> BinaryIO:
        """The `size` bytes from `offset` on. Fails once the spool is closed."""
        return cast("BinaryIO", _Slice(self, offset, size))

    def read_at(self, offset: int, buffer: memoryview) -> int:
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(buffer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Slice(io.RawIOBase):
    def __init__(self, spool: Spool, offset: int, size: int) -> None:
        super().__init__()
        self._spool = spool
        self._offset = offset
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")[: self._left]
        count = self._spool.read_at(self._offset, view) if view else 0
        self._offset += count
        self._left -= count
        return count
