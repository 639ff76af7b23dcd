"""Small files of layers, read without uncompressing what comes behind them.

A RUN needs /etc/passwd of its image, which stands near the beginning of a layer that may be
large; uncompressing all of it would take longer than many a step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from hashlib import sha256
from typing import BinaryIO

from pybuild.errors import InvalidImage
from pybuild.files.recent import Recent
from pybuild.oci.descriptor import LayerDiff
from pybuild.oci.layerindex import Entry
from pybuild.values import dataclass, field

_LARGEST = 1 << 16
_FARTHEST = 1 << 25  # of one layer, all that is uncompressed for its small files together
_MOST_FILES = 8
_MOST_LAYERS = 16
_PIECE = 1 << 18


@dataclass(slots=True)
class _Layer:
    """What was read of one layer: contents by their offset."""

    contents: dict[int, bytes] = field(default_factory=dict)
    uncompressed: int = 0


class SmallFiles:
    """Reads and remembers a few small files of each of the layers used last. Safe in threads."""

    def __init__(self, open_blob: Callable[[str], BinaryIO]) -> None:
        """`open_blob` opens the stored bytes of the blob with this digest."""
        self._open_blob = open_blob
        self._lock = threading.Lock()
        self._layers: Recent[str, _Layer] = Recent(_MOST_LAYERS)

    def read(self, layer: LayerDiff, entry: Entry, offset: int) -> bytes | None:
        """The content of the FILE `entry`, at `offset` in the layer's tar.

        None where it is better to uncompress the whole layer: for a large file, one far
        behind, or one of many. Raises InvalidImage if the blob is damaged up to there.
        """
        with self._lock:
            known = self._layers.get(layer.diff_id)
            if known is None:
                known = _Layer()
                self._layers.put(layer.diff_id, known)
            found = known.contents.get(offset)
            if found is not None and len(found) == entry.size:
                return found
            end = offset + entry.size
            is_near = known.uncompressed + end <= _FARTHEST and entry.size <= _LARGEST
            if not is_near or len(known.contents) >= _MOST_FILES or entry.digest is None:
                return None
            known.uncompressed += end
        content = self._read(layer, offset, entry.size)
        if f"sha256:{sha256(content).hexdigest()}" != entry.digest:
            raise InvalidImage(
                f"layer {layer.blob.digest} doesn't hold {layer.diff_id}: it is damaged"
            )
        with self._lock:
            known.contents[offset] = content
        return content

    def _read(self, layer: LayerDiff, offset: int, size: int) -> bytes:
        from pybuild.oci.compression import Decompressed  # noqa: PLC0415 - for a layer's content

        content = bytearray()
        with self._open_blob(layer.blob.digest) as blob, Decompressed(blob) as plain:
            ahead = offset
            while len(content) < size and (piece := plain.read(_PIECE)):
                content += piece[ahead:]
                ahead = max(0, ahead - len(piece))
        return bytes(content[:size])
