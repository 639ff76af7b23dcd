"""A part of a file, as a stream of its own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer  # typing.Buffer comes with Python 3.12


class FilePart(io.RawIOBase):
    """`size` bytes of a file, from `offset` on."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        super().__init__()
        self._left = size
        self._file = path.open("rb", buffering=0)
        self._file.seek(offset)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        room = memoryview(buffer)[: self._left]
        count: int = self._file.readinto(room) or 0
        self._left -= count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
