"""The bytes of a layer's tar on their way out: hashed, compressed, hashed again, handed on."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, BinaryIO, Self, cast

from pybuild.errors import InvalidImage
from pybuild.oci.compression import (
    HEAD,
    Compression,
    Decompressed,
    Packing,
    compressor,
)
from pybuild.oci.descriptor import Descriptor, LayerDiff
from pybuild.values import dataclass

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

BLOCK_SIZE = 1024 * 1024
"""How many bytes are compressed at once, each block by itself."""

_MOST_AHEAD = 4
_MOST_COMPRESSING = 4
_BUSY = 2  # threads that read and hash, which leave one of so many processors for no other
_MOST_UNPACKED = 4 * BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """A piece of a stored layer: ``size`` bytes of a blob that are ``plain`` bytes of tar.

    ``open`` gives just these bytes of the blob, in any thread.
    """

    size: int
    plain: int
    open: Callable[[], BinaryIO]


class DamagedPiece(InvalidImage):
    """A stored piece isn't what it was when it was stored."""


class LayerBlocks:
    """Takes a tar, and hands its compressed bytes to `sink`: a context manager, for one thread.

    It is compressed in pieces, each by itself, so that a stored one can be taken over as it is,
    and each in blocks, each by itself, so that several threads can do that. While one block is
    filled, those before it are compressed, hashed in a thread of its own, and handed on in another.
    What comes out doesn't depend on how many threads there are. A layer of less than a block
    needs none. What `sink` raises is raised by a later call, by `finish` at the latest, as
    is DamagedPiece.
    """

    def __init__(
        self,
        sink: Callable[[bytes], object],
        compression: Compression,
        on_bytes: Callable[[int], object] | None,
    ) -> None:
        self._sink = sink
        self._packing = Packing(compression)
        self._on_bytes = on_bytes
        self._block = memoryview(bytearray(BLOCK_SIZE))
        self._used = 0
        self._flushed = 0
        self._diff = sha256()
        self._blob = sha256()
        self._size = 0
        self._ends: list[int] = []
        self._is_broken = False
        self._threads: _Threads | None = None
        self._unpacking: ThreadPoolExecutor | None = None
        self._ahead: deque[tuple[memoryview | None, tuple[Future[None], ...]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        # the others may wait for what is unpacked
        if self._unpacking is not None:
            self._unpacking.shutdown(cancel_futures=True)
        if self._threads is not None:
            self._threads.shutdown()

    @property
    def position(self) -> int:
        """Bytes of tar so far."""
        return self._flushed + self._used

    @property
    def ends(self) -> list[int]:
        """Where each piece ended in the blob. Known once it is finished."""
        return self._ends

    def write(self, data: bytes) -> None:
        end = self._used + len(data)
        if end < BLOCK_SIZE:
            self._block[self._used : end] = data
            self._used = end
            return
        rest = memoryview(data)
        while rest:
            piece = rest[: BLOCK_SIZE - self._used]
            self._block[self._used : self._used + len(piece)] = piece
            self._used += len(piece)
            rest = rest[len(piece) :]
            if self._used == BLOCK_SIZE:
                self._flush(ends=False)

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
            if self._used == BLOCK_SIZE:
                self._flush(ends=False)
        if stream.read(1):
            return None
        return f"sha256:{digest.hexdigest()}"

    def end_piece(self) -> None:
        """What is written from now on belongs to the next piece."""
        self._flush(ends=True)

    def take_over(self, piece: StoredPiece) -> None:
        """Let `piece` be the next one. Only just after the end of another."""
        self._count(piece.plain)
        self._process(
            partial(self._hash_stored, self._unpacked(piece)),
            partial(self._pack_stored, piece),
            None,
            piece.plain,
        )

    def finish(self) -> LayerDiff:
        """What the tar has become, whose last piece was ended."""
        while self._ahead:
            self._next_done()
        blob = Descriptor(
            self._packing.compression.media_type, f"sha256:{self._blob.hexdigest()}", self._size
        )
        return LayerDiff(f"sha256:{self._diff.hexdigest()}", blob)

    def _flush(self, *, ends: bool) -> None:
        """Have what is in the block processed, and begin another."""
        full, used = self._block, self._used
        block = full[:used]
        self._used = 0
        compress = self._compressing(block) if used else bytes
        self._count(used)
        if self._threads is not None and self._threads.compressing is not None:
            compress = self._threads.compressing.submit(compress).result
        pack = partial(self._pack, compress, ends=ends)
        self._process(partial(self._diff.update, block), pack, full, used)

    def _compressing(self, block: memoryview) -> Callable[[], bytes]:
        stream = compressor(self._packing)
        # here and not in another thread, which would wait for Python's lock once more
        begun = stream.compress(block[:HEAD])
        return lambda: b"".join((begun, stream.compress(block[HEAD:]), stream.flush()))

    def _count(self, size: int) -> None:
        """Count the next bytes of tar; with a whole block of them, threads are worth it."""
        self._flushed += size
        if self._threads is None and self._flushed >= BLOCK_SIZE:
            self._threads = _Threads.started()

    def _process(
        self,
        hash_it: Callable[[], None],
        pack: Callable[[], None],
        block: memoryview | None,
        size: int,
    ) -> None:
        threads = self._threads
        if threads is None:
            hash_it()
            pack()
        else:
            tasks = threads.hashing.submit(hash_it), threads.packing.submit(pack)
            self._ahead.append((block, tasks))
            free = self._next_free(threads.most_ahead)
            if block is not None:
                self._block = free or memoryview(bytearray(BLOCK_SIZE))
        if self._on_bytes is not None:
            self._on_bytes(size)

    def _next_free(self, most: int) -> memoryview | None:
        """A block that is done with, waited for where there are `most` that are not."""
        free = None
        while len(self._ahead) >= most:
            free = self._next_done() or free
        return free

    def _next_done(self) -> memoryview | None:
        """Wait for what was to be processed first; its block, if it has one."""
        block, tasks = self._ahead.popleft()
        for task in tasks:
            task.result()
        return block

    def _pack(self, compress: Callable[[], bytes], *, ends: bool) -> None:
        if self._is_broken:
            return
        self._is_broken = True  # as long as this isn't done
        self._hand_on(compress())
        if ends:
            self._ends.append(self._size)
        self._is_broken = False

    def _unpacked(self, piece: StoredPiece) -> Callable[[], Iterable[bytes]]:
        """What gives the tar of a piece, uncompressed in a thread of its own if it is small."""
        if piece.plain > _MOST_UNPACKED:
            return partial(_unpack, piece)
        if self._unpacking is None:
            from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - as above

            self._unpacking = ThreadPoolExecutor(1, thread_name_prefix="pybuild-unpack")
        return self._unpacking.submit(lambda: list(_unpack(piece))).result

    def _hash_stored(self, unpacked: Callable[[], Iterable[bytes]]) -> None:
        for data in unpacked():
            self._diff.update(data)

    def _pack_stored(self, piece: StoredPiece) -> None:
        if self._is_broken:
            return
        self._is_broken = True
        end = self._size + piece.size
        with closing(piece.open()) as stored:
            while data := stored.read(BLOCK_SIZE):
                self._hand_on(data)
        if self._size != end:
            raise DamagedPiece("a piece of a stored layer is shorter than it was")
        self._ends.append(end)
        self._is_broken = False

    def _hand_on(self, data: bytes) -> None:
        if data:
            self._blob.update(data)
            self._size += len(data)
            self._sink(data)


@dataclass(frozen=True, slots=True)
class _Threads:
    """One thread each that hashes the tar and hands the blob on, in their order.

    Where there is no other that compresses, the second does that as well.
    """

    hashing: ThreadPoolExecutor
    packing: ThreadPoolExecutor
    compressing: ThreadPoolExecutor | None
    most_ahead: int

    @classmethod
    def started(cls) -> Self:
        from concurrent.futures import ThreadPoolExecutor as Pool  # noqa: PLC0415 - for a large layer

        several = min((os.cpu_count() or 1) - _BUSY, _MOST_COMPRESSING)
        return cls(
            Pool(1, thread_name_prefix="pybuild-hash"),
            Pool(1, thread_name_prefix="pybuild-pack"),
            Pool(several, thread_name_prefix="pybuild-compress") if several > 0 else None,
            _MOST_AHEAD + max(several, 0),
        )

    def shutdown(self) -> None:
        """End them; what isn't begun is dropped."""
        # packing waits for what is compressed
        for pool in (self.compressing, self.hashing, self.packing):
            if pool is not None:
                pool.shutdown(cancel_futures=True)


def _unpack(piece: StoredPiece) -> Iterator[bytes]:
    size = 0
    with closing(piece.open()) as stored:
        try:
            with Decompressed(stored) as plain:
                if plain.kind is None:
                    raise InvalidImage("it isn't compressed")
                while data := plain.read(BLOCK_SIZE):
                    yield data
                    size += len(data)
        except InvalidImage as error:
            raise DamagedPiece(f"a piece of a stored layer: {error.message}") from error
    if size != piece.plain:
        raise DamagedPiece(f"a piece of a stored layer has {size} bytes instead of {piece.plain}")
