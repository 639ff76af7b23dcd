"""Gives a reader inputs made by hypothesis for some time, and prints how many they were.

    python tests/fuzz/longrun.py READER SECONDS [FIRST_NUMBER]

Ends at the first input at which the reader fails, or that takes it more than five seconds of
the processor's time: it is printed in hexadecimal, as found.json has it, after the number that makes it again.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from inputs import INPUTS, drive
from readers import check

_LIMIT = 5.0
_ROUND = 1000


class _TooSlow(BaseException):
    """Raised inside of the reader; no reader catches it."""


def main() -> None:
    """Read the arguments, and drive the reader in rounds."""
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in INPUTS:
        sys.exit(f"usage: longrun.py READER SECONDS [FIRST_NUMBER]; readers: {', '.join(INPUTS)}")
    reader, until = sys.argv[1], time.monotonic() + float(sys.argv[2])
    number = int(sys.argv[3]) if len(sys.argv) == 4 else 1
    signal.signal(signal.SIGPROF, _stop)
    examples, slowest = 0, 0.0
    last = b""

    def take(data: bytes) -> None:
        nonlocal examples, last, slowest
        last = data
        examples += 1
        began = time.process_time()
        with _limited():
            check(reader, data)
        slowest = max(slowest, time.process_time() - began)

    try:
        while time.monotonic() < until:
            drive(reader, take, _ROUND, number)
            number += 1
    except (Exception, _TooSlow) as fault:
        _say(f"{reader}: number {number}, {type(fault).__name__}: {fault}\n{last.hex()}")
        raise
    _say(f"{reader}: {examples} examples, the slowest took {slowest * 1000:.0f} ms")


@contextmanager
def _limited() -> Iterator[None]:
    # again and again, for an exception in a callback is lost
    signal.setitimer(signal.ITIMER_PROF, _LIMIT, _LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _stop(number: int, frame: object) -> None:
    raise _TooSlow(f"signal {number}: more than {_LIMIT} seconds")


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  (a program, not a test)


if __name__ == "__main__":
    main()
