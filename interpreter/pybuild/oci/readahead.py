"""A stream that is read in a thread of its own, and seen to in another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from pybuild.oci.tarformat import Readable

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_PIECE = 1 << 20
_ALONE = 1  # pieces at the beginning for which no thread is worth it
_MOST_AHEAD = 4


class ReadAhead:
    """What `stream` has, read a little before it is asked for: a context manager, for one thread.

    `observe` sees all pieces in their order, in a thread of its own. What the stream raises comes
    where it belongs, what `observe` raises a few pieces later, and at the end at the latest.
    Nothing else may use `stream` until the context is left.
    """

    def __init__(self, stream: Readable, observe: Callable[[bytes], object]) -> None:
        self._stream = stream
        self._observe = observe
        self._alone = _ALONE
        self._threads: tuple[ThreadPoolExecutor, ThreadPoolExecutor] | None = None
        self._ahead: deque[Future[tuple[bytes, Future[object] | None]]] = deque()
        self._observed: deque[Future[object]] = deque()
        self._left = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for thread in self._threads or ():
            thread.shutdown(cancel_futures=True)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none only at the end, when all was observed."""
        piece = self._left or self._piece()
        found, self._left = piece[:size], piece[size:]
        return found

    def _piece(self) -> bytes:
        if self._alone:
            self._alone -= 1
            piece = self._stream.read(_PIECE)
            if piece:
                self._observe(piece)
            return piece
        reading, observing = self._threads or self._start_threads()
        while len(self._ahead) < _MOST_AHEAD:
            self._ahead.append(reading.submit(self._next, observing))
        piece, observed = self._ahead.popleft().result()
        if observed is not None:
            self._observed.append(observed)
        while len(self._observed) > (_MOST_AHEAD if piece else 0):
            self._observed.popleft().result()
        return piece

    def _next(self, observing: ThreadPoolExecutor) -> tuple[bytes, Future[object] | None]:
        piece = self._stream.read(_PIECE)
        return piece, observing.submit(self._observe, piece) if piece else None

    def _start_threads(self) -> tuple[ThreadPoolExecutor, ThreadPoolExecutor]:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - for long streams

        # each has one thread, so that it does one piece after the other
        self._threads = (
            ThreadPoolExecutor(1, thread_name_prefix="pybuild-read"),
            ThreadPoolExecutor(1, thread_name_prefix="pybuild-observe"),
        )
        return self._threads
