"""Work that a worker shares with copies of itself, so that several processors do it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from pybuild.errors import BackendFailed, PybuildError
from pybuild_embedded.requests import decode_answer, encode_answer, encode_bug, encode_error

_MOST_SHARES = 4

T = TypeVar("T")


def cut(items: Sequence[T], costs: Sequence[int], least: int) -> list[Sequence[T]]:
    """Cut `items` into shares that cost about the same, and `least` each if they are several.

    There are at most as many as processors that this process may use, and no more than four.
    """
    total = sum(costs)
    count = max(1, min(_MOST_SHARES, len(os.sched_getaffinity(0)), total // least))
    shares: list[Sequence[T]] = []
    begin = spent = 0
    for place, cost in enumerate(costs):
        spent += cost
        if spent * count >= total * (len(shares) + 1):
            shares.append(items[begin : place + 1])
            begin = place + 1
    return shares


def share(work: Callable[[int], int], count: int) -> list[int]:
    """What `work` gives for the numbers up to `count`, each but 0 done in a copy of this process.

    There must be no other thread. What fails in a copy fails here; when this returns or raises,
    they have ended. Where no more processes may be started, this one does the rest.
    """
    copies: list[_Copy] = []
    try:
        with suppress(OSError):
            while len(copies) < count - 1:
                copies.append(_Copy(work, len(copies) + 1))
        own = [work(0), *(work(number) for number in range(len(copies) + 1, count))]
        return [own[0], *(copy.result() for copy in copies), *own[1:]]
    finally:
        for copy in copies:
            copy.end()


class _Copy:
    """A copy of this process that does one share of the work."""

    def __init__(self, work: Callable[[int], int], number: int) -> None:
        self._answer, theirs = os.pipe()
        try:
            self._pid = os.fork()
        except OSError:
            os.close(self._answer)
            os.close(theirs)
            raise
        if self._pid == 0:
            try:
                os.close(self._answer)
                with os.fdopen(theirs, "wb") as file:
                    file.write(_done(work, number))
            finally:
                os._exit(0)
        os.close(theirs)

    def result(self) -> Any:
        """Wait for what the work gives. Raises what it raised."""
        with os.fdopen(self._answer, "rb", closefd=False) as file:
            answer = file.read()
        if not answer:
            raise BackendFailed("a worker of the sandbox ended in the middle of its work")
        return decode_answer(answer)

    def end(self) -> None:
        """End it, whatever it is at."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._answer)


def _done(work: Callable[[int], int], number: int) -> bytes:
    try:
        return encode_answer(work(number))
    except PybuildError as error:
        return encode_error(error)
    except Exception:  # noqa: BLE001 - the one who forked is told whatever it is
        import traceback  # noqa: PLC0415 - for a bug

        return encode_bug(traceback.format_exc())
