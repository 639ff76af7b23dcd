"""Reading and writing descriptors that may have to be waited for, until a cancel."""

from __future__ import annotations

import io
import os
import select

from pybuild.errors import UsageError
from pybuild.run.activity import CancelToken

_SECONDS_BETWEEN_LOOKS = 0.1


class CancellableInput(io.RawIOBase):
    """Reads a file descriptor. Raises BuildCancelled, UsageError."""

    def __init__(self, number: int, cancel: CancelToken) -> None:
        self._number = number
        self._cancel = cancel

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # any writable buffer
        while True:
            self._cancel.raise_if_cancelled()
            try:
                if not select.select([self._number], [], [], _SECONDS_BETWEEN_LOOKS)[0]:
                    continue
                part = os.read(self._number, len(buffer))
            except OSError as error:
                reason = error.strerror or error
                raise UsageError(f"can't read standard input: {reason}") from error
            buffer[: len(part)] = part
            return len(part)


class CancellableOutput(io.RawIOBase):
    """Writes to a file descriptor. Raises BuildCancelled, OSError."""

    def __init__(self, number: int, cancel: CancelToken) -> None:
        self._number = number
        self._cancel = cancel

    def writable(self) -> bool:
        return True

    def write(self, piece: bytes | memoryview) -> int:  # type: ignore[override]  # any buffer
        while True:
            self._cancel.raise_if_cancelled()
            if select.select([], [self._number], [], _SECONDS_BETWEEN_LOOKS)[1]:
                # what fits into a pipe that has room at all (pipe(7))
                return os.write(self._number, piece[: select.PIPE_BUF])
