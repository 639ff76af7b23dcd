"""A stream that is read, and seen to, in a thread of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from pybuild.oci.tarformat import Readable

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_PIECE = 1 << 18
_ALONE = 4  # pieces at the beginning for which no thread is worth it
_MOST_AHEAD = 8


class ReadAhead:
    """What `stream` has, read a little before it is asked for: a context manager, for one thread.

    `observe` sees all pieces in their order. Errors of both come with the piece that they
    were in. Nothing else may use `stream` until the context is left.
    """

    def __init__(self, stream: Readable, observe: Callable[[bytes], object]) -> None:
        self._stream = stream
        self._observe = observe
        self._alone = _ALONE
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: deque[Future[bytes]] = deque()
        self._left = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none only at the end."""
        piece = self._left or self._piece()
        found, self._left = piece[:size], piece[size:]
        return found

    def _piece(self) -> bytes:
        if self._alone:
            self._alone -= 1
            return self._next()
        if self._thread is None:
            from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - for long streams

            self._thread = ThreadPoolExecutor(1, thread_name_prefix="pybuild-read")
        while len(self._ahead) < _MOST_AHEAD:
            self._ahead.append(self._thread.submit(self._next))
        return self._ahead.popleft().result()

    def _next(self) -> bytes:
        piece = self._stream.read(_PIECE)
        if piece:
            self._observe(piece)
        return piece
