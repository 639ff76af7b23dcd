"""How long something takes, whatever the machine and what else it is doing."""

from __future__ import annotations

import time
from collections.abc import Callable

_LOOPS = 20_000
_USUAL = 0.0008
"""Seconds that a loop of so many takes where the limits of tests were set."""


def seconds(do: Callable[[], object], rounds: int) -> float:
    """The least processor time of `rounds`, in this thread.

    Where Python itself is slower than usual just then, as much less counts.
    """
    spent, yardstick = [], []
    for _ in range(rounds):
        spent.append(_spent(do))
        yardstick.append(_spent(_loop))
    return min(spent) / max(1.0, min(yardstick) / _USUAL)


def _spent(do: Callable[[], object]) -> float:
    began = time.thread_time()
    do()
    return time.thread_time() - began


def _loop() -> int:
    total = 0
    for number in range(_LOOPS):
        total += number
    return total
