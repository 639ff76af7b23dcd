"""Which pieces stored layers have, so that a layer that has the same needn't make them again."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pybuild.errors import PybuildError
from pybuild.files.rowfiles import RowFormat
from pybuild.files.wholefiles import NEW, by_age, keep_newest, write_whole
from pybuild.oci.layerblocks import DamagedPiece, StoredPiece
from pybuild.oci.layerwriter import Piece
from pybuild.values import dataclass

FOLDER = "pieces"
"""Where the tables are, below :meth:`.Backend.notes_folder`, one for each layer."""

# key, offset and size in the blob, size in the tar
_FORMAT = RowFormat(b"pybuild layer pieces 1\n", struct.Struct("<32sQQQ"))
_MOST_LAYERS = 64
_LEAST = 1 << 20

OpenPart = Callable[[str, int, int], BinaryIO]
"""Opens so many bytes of the blob with this digest, from an offset on."""


@dataclass(frozen=True, slots=True)
class _Place:
    offset: int
    size: int
    plain: int


@dataclass(slots=True)
class _Layer:
    """The pieces of a blob by their keys; whether it is there isn't known at first."""

    places: dict[bytes, _Place]
    is_there: bool | None = None


class StoredPieces:
    """The pieces of the layers that were written last. Safe in threads.

    `keep` tells whether a blob is there, and sees to it that it stays. Whoever owns `folder`, and
    the store, is trusted; a piece that is damaged is told by its checksum.
    """

    def __init__(self, folder: Path, keep: Callable[[str], bool], open_part: OpenPart) -> None:
        self._folder = folder
        self._keep = keep
        self._open_part = open_part
        self._lock = threading.Lock()
        self._was_read = False
        # by their blobs, the newest last
        self._layers: dict[str, _Layer] = {}

    def find(self, key: bytes) -> StoredPiece | None:
        """The piece with this key; reading it raises DamagedPiece if it isn't there any more."""
        with self._lock:
            if not self._was_read:
                self._layers = self._read_all() | self._layers
                self._was_read = True
            for blob, layer in reversed(self._layers.items()):
                place = layer.places.get(key)
                if place is not None and self._is_there(blob, layer):
                    return StoredPiece(place.size, place.plain, partial(self._open, blob, place))
        return None

    def record(self, blob: str, pieces: Iterable[Piece]) -> None:
        """Keep what `blob`, which is stored, consists of; where that fails it isn't found."""
        places: dict[bytes, _Place] = {}
        offset = plain = 0
        for piece in pieces:
            places[piece.key] = _Place(offset, piece.size, piece.plain)
            offset += piece.size
            plain += piece.plain
        if plain < _LEAST:
            return
        with self._lock:
            self._layers.pop(blob, None)
            self._layers[blob] = _Layer(places)
            for oldest in list(self._layers)[:-_MOST_LAYERS]:
                del self._layers[oldest]
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self._folder / _name(blob), _to_bytes(places))
            keep_newest(self._folder, _MOST_LAYERS)

    def _is_there(self, blob: str, layer: _Layer) -> bool:
        if layer.is_there is None:
            layer.is_there = self._keep(blob)
            if not layer.is_there:
                with suppress(OSError):
                    (self._folder / _name(blob)).unlink(missing_ok=True)
        return layer.is_there

    def _open(self, blob: str, place: _Place) -> BinaryIO:
        try:
            return self._open_part(blob, place.offset, place.size)
        except (PybuildError, OSError) as error:
            raise DamagedPiece(f"a piece of {blob} can't be read: {error}") from error

    def _read_all(self) -> dict[str, _Layer]:
        with suppress(OSError):
            return {
                path.name.replace("-", ":"): _Layer(_read(path))
                for path in by_age(self._folder)
                if not path.name.startswith(NEW)
            }
        return {}


def _name(blob: str) -> str:
    return blob.replace(":", "-")


def _to_bytes(places: dict[bytes, _Place]) -> bytes:
    return _FORMAT.to_bytes(
        (key, place.offset, place.size, place.plain) for key, place in places.items()
    )


def _read(path: Path) -> dict[bytes, _Place]:
    """What is kept there; nothing of what is damaged."""
    return {row[0]: _Place(*row[1:]) for row in _FORMAT.read(path)}
