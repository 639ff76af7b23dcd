"""The index of a layer, made while its blob arrives."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import BinaryIO, Protocol, Self, cast

from pybuild.errors import InvalidImage
from pybuild.oci.descriptor import Descriptor
from pybuild.oci.layerindex import LayerIndex, OnIndex
from pybuild.oci.layertar import OnFile, read_index
from pybuild.oci.sinks import OpenSink, Sink
from pybuild.oci.tarformat import Limits

_MOST_AHEAD = 8 << 20


class PlainSink(Protocol):
    """Takes the plain tar of a layer, or the files in it; what it has is wanted once it is kept.

    `write` is called in one thread and `on_file` in another, all else when neither is.
    """

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...

    def write(self, piece: bytes, /) -> None:
        """Take the next piece."""

    @property
    def on_file(self) -> OnFile | None:
        """Takes the files; None if they aren't wanted."""

    def restart(self) -> None:
        """Drop all that was written."""

    def keep(self, diff_id: str, /) -> None:
        """All was written."""


def indexing(
    open_sink: OpenSink,
    on_index: OnIndex,
    copy: Callable[[Descriptor], PlainSink | None] | None = None,
) -> OpenSink:
    """As `open_sink`, for blobs of layers: `on_index` gets the index of each that is committed.

    What `copy` gives for a blob, if anything, takes the layer uncompressed.
    """

    @contextmanager
    def opened(blob: Descriptor) -> Iterator[Sink]:
        with ExitStack() as stack:
            sink = stack.enter_context(open_sink(blob))
            plain = copy(blob) if copy is not None else None
            if plain is not None:
                stack.enter_context(plain)
            layer = stack.enter_context(closing(ArrivingLayer(blob.size, plain)))
            yield _IndexingSink(sink, layer, blob.digest, on_index)

    return opened


class _IndexingSink:
    def __init__(self, sink: Sink, layer: ArrivingLayer, digest: str, on_index: OnIndex) -> None:
        self._sink = sink
        self._layer = layer
        self._digest = digest
        self._on_index = on_index

    def write(self, piece: bytes, /) -> None:
        self._sink.write(piece)
        self._layer.write(piece)

    def restart(self) -> None:
        self._layer.restart()
        self._sink.restart()

    def commit(self) -> None:
        self._sink.commit()
        found = self._layer.finish()
        if found is not None:
            self._on_index(self._digest, *found)


class ArrivingLayer:
    """Reads a layer piece by piece, in a thread of its own; for one other thread.

    Nothing in it is trusted before the blob has proved to be the one that was asked for.
    """

    def __init__(self, size: int, plain: PlainSink | None = None) -> None:
        """`size` is that of the whole blob in bytes; `plain` takes it uncompressed."""
        self._plain = plain
        self._limits = Limits(compressed_size=size)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pybuild-index")
        self._pieces: _Pieces | None = None
        self._index: Future[tuple[str, LayerIndex]] | None = None

    def close(self) -> None:
        """End all that is going on."""
        self.restart()
        self._thread.shutdown()

    def write(self, piece: bytes) -> None:
        """Take the next piece; waits while many wait to be read."""
        if self._pieces is None:
            self._pieces = pieces = _Pieces()
            observe = None if self._plain is None else self._plain.write
            on_file = None if self._plain is None else self._plain.on_file
            self._index = self._thread.submit(
                read_index, cast("BinaryIO", pieces), self._limits, observe, on_file
            )
            # what is no layer isn't read to its end
            self._index.add_done_callback(lambda _: pieces.give_up())
        self._pieces.put(piece)

    def restart(self) -> None:
        """Give up what was read: the blob begins anew, or isn't wanted."""
        pieces, index, self._pieces, self._index = self._pieces, self._index, None, None
        if pieces is not None and index is not None:
            pieces.give_up()
            index.exception()
            if self._plain is not None:
                self._plain.restart()

    def finish(self) -> tuple[str, LayerIndex] | None:
        """The diff id and index of what was written; None if that is no layer."""
        pieces, reading, self._pieces, self._index = self._pieces, self._index, None, None
        if pieces is None or reading is None:
            return None
        pieces.end()
        try:
            diff_id, index = reading.result()
        except InvalidImage:
            return None
        if self._plain is not None:
            self._plain.keep(diff_id)
        return diff_id, index


class _GaveUpError(Exception):
    """No more pieces come, though the blob isn't complete."""


class _Pieces:
    """What one thread puts and another reads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._is_complete = False
        self._is_given_up = False

    def put(self, piece: bytes) -> None:
        with self._changed:
            while self._size > _MOST_AHEAD and not self._is_given_up:
                self._changed.wait()
            if self._is_given_up:
                return
            self._waiting.append(piece)
            self._size += len(piece)
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._is_complete = True
            self._changed.notify_all()

    def give_up(self) -> None:
        with self._changed:
            self._is_given_up = True
            self._waiting.clear()
            self._changed.notify_all()

    def read(self, size: int) -> bytes:
        with self._changed:
            while not (self._waiting or self._is_complete or self._is_given_up):
                self._changed.wait()
            if self._is_given_up:
                raise _GaveUpError
            if not self._waiting:
                return b""
            piece = self._waiting.popleft()
            if len(piece) > size:
                self._waiting.appendleft(piece[size:])
                piece = piece[:size]
            self._size -= len(piece)
            self._changed.notify_all()
            return piece
