"""The bytes of a layer's tar on their way out: hashed, compressed, hashed again, handed on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, BinaryIO, Self, cast

from pybuild.oci.compression import Compression, Packing, compressor
from pybuild.oci.descriptor import Descriptor, LayerDiff
from pybuild.oci.tarformat import BLOCK

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_CHUNK = 1024 * 1024
_MOST_AHEAD = 4


class LayerBlocks:
    """Takes a tar, and hands its compressed bytes to `sink`: a context manager, for one thread.

    While one MiB is filled, those before it are hashed in a second thread, compressed and
    handed on in a third. What comes out doesn't depend on that. A layer of less than a MiB
    needs no threads. What `sink` raises is raised by a later call, by `finish` at the latest.
    """

    def __init__(
        self,
        sink: Callable[[bytes], object],
        compression: Compression,
        on_bytes: Callable[[int], object] | None,
    ) -> None:
        self._sink = sink
        self._compression = compression
        self._compressor = compressor(Packing(compression))
        self._on_bytes = on_bytes
        self._block = memoryview(bytearray(_CHUNK))
        self._used = 0
        self._flushed = 0
        self._diff = sha256()
        self._blob = sha256()
        self._size = 0
        self._is_broken = False
        self._threads: tuple[ThreadPoolExecutor, ThreadPoolExecutor] | None = None
        self._ahead: deque[tuple[memoryview, tuple[Future[None], ...]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for thread in self._threads or ():
            thread.shutdown(cancel_futures=True)

    @property
    def position(self) -> int:
        """Bytes of tar so far."""
        return self._flushed + self._used

    def write(self, data: bytes) -> None:
        end = self._used + len(data)
        if end < _CHUNK:
            self._block[self._used : end] = data
            self._used = end
            return
        rest = memoryview(data)
        while rest:
            piece = rest[: _CHUNK - self._used]
            self._block[self._used : self._used + len(piece)] = piece
            self._used += len(piece)
            rest = rest[len(piece) :]
            if self._used == _CHUNK:
                self._flush()

    def copy(self, stream: BinaryIO, size: int) -> str | None:
        """Copy `size` bytes from `stream`, which must end there: their digest, else None."""
        read_into = cast("Callable[[memoryview], int] | None", getattr(stream, "readinto", None))
        digest = sha256()
        left = size
        while left:
            room = self._block[self._used : self._used + left]
            if read_into is None:
                data = stream.read(len(room))
                count = len(data)
                room[:count] = data
            else:
                count = read_into(room)
            if not count:
                return None
            digest.update(room[:count])
            self._used += count
            left -= count
            if self._used == _CHUNK:
                self._flush()
        if stream.read(1):
            return None
        return f"sha256:{digest.hexdigest()}"

    def finish(self) -> LayerDiff:
        """End the tar; what it has become."""
        self.write(bytes(2 * BLOCK))
        last = self._block[: self._used]
        while self._ahead:
            self._next_done()
        self._diff.update(last)
        self._pack(last)
        self._hand_on(self._compressor.flush())
        if self._on_bytes is not None:
            self._on_bytes(self._used)
        blob = Descriptor(
            self._compression.media_type, f"sha256:{self._blob.hexdigest()}", self._size
        )
        return LayerDiff(f"sha256:{self._diff.hexdigest()}", blob)

    def _flush(self) -> None:
        """Have the block, which is full, processed, and begin another."""
        hashing, packing = self._threads or self._start_threads()
        full = self._block
        tasks = (hashing.submit(self._diff.update, full), packing.submit(self._pack, full))
        self._ahead.append((full, tasks))
        # the blocks are used again, so that there are few whatever the size of the layer
        is_first_round = len(self._ahead) < _MOST_AHEAD
        self._block = memoryview(bytearray(_CHUNK)) if is_first_round else self._next_done()
        self._flushed += self._used
        self._used = 0
        if self._on_bytes is not None:
            self._on_bytes(_CHUNK)

    def _start_threads(self) -> tuple[ThreadPoolExecutor, ThreadPoolExecutor]:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - for a large layer

        # each has one thread, so that it does one block after the other
        self._threads = (
            ThreadPoolExecutor(1, thread_name_prefix="pybuild-hash"),
            ThreadPoolExecutor(1, thread_name_prefix="pybuild-pack"),
        )
        return self._threads

    def _next_done(self) -> memoryview:
        """Wait for the block that was full first."""
        block, tasks = self._ahead.popleft()
        for task in tasks:
            task.result()
        return block

    def _pack(self, block: memoryview) -> None:
        if self._is_broken:
            return
        self._is_broken = True  # as long as this isn't done
        self._hand_on(self._compressor.compress(block))
        self._is_broken = False

    def _hand_on(self, data: bytes) -> None:
        if data:
            self._blob.update(data)
            self._size += len(data)
            self._sink(data)
