"""Files of rows of one format. Of a file that is damaged anywhere, nothing is taken."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import starmap
from pathlib import Path
from typing import Any

from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class RowFormat:
    """``magic`` begins each file, with its version; ``row`` is a line of struct's language."""

    magic: bytes
    row: struct.Struct

    def to_bytes(self, rows: Iterable[tuple[Any, ...]]) -> bytes:
        """The file that holds `rows`."""
        body = b"".join(starmap(self.row.pack, rows))
        return self.magic + sha256(body).digest() + body

    def read(self, path: Path) -> Iterator[tuple[Any, ...]]:
        """The rows of a file; none if there is no such file, or it isn't what was written."""
        try:
            content = path.read_bytes()
        except OSError:
            return iter(())
        head = len(self.magic) + sha256().digest_size
        body = memoryview(content)[head:]
        if content[:head] != self.magic + sha256(body).digest() or len(body) % self.row.size:
            return iter(())
        return self.row.iter_unpack(body)
