"""Running a builder's command, and what it costs: time, and the most memory at once."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Self

from controlgroups import ControlGroup, resident

from pybuild.sandbox.client import has_ended

TRUSTED_AFTER = 2.1
"""Seconds in which no builder trusts a file that has just changed."""

_MIB = 1024 * 1024
_PAUSE = 0.01
_LONGEST = 1800.0


@dataclass(frozen=True)
class Command:
    """``environ`` is the whole environment, or None for this process's own."""

    arguments: tuple[str, ...]
    environ: Mapping[str, str] | None = None


Daemons = Sequence[ControlGroup] | None
"""Where those are that a builder needs; None if they aren't ours to look at."""


@dataclass(frozen=True)
class Cost:
    """Seconds: of the clock; of processors, by the program with all below it and by its daemons.

    ``daemons`` is None for those that aren't ours to look at.
    """

    wall: float
    cpu: float
    daemons: float | None


@dataclass(frozen=True)
class Memory:
    """The most MiB at once: of the program with all below it, and of its daemons."""

    program: float
    daemons: float


def call(command: Command) -> str:
    """Run it and return what it wrote. Raises SystemExit with that if it fails."""
    with tempfile.TemporaryFile() as said:
        process = _start(command, said)
        _wait(process, command, said)
        said.seek(0)
        return said.read().decode(errors="replace")


def timed(command: Command, daemons: Daemons) -> Cost:
    """Run it alone, undisturbed by any watching. Fails as `call` does."""
    with tempfile.TemporaryFile() as said, _Meter(daemons) as meter:
        _wait(_start(command, said), command, said)
    return meter.cost


def watched(command: Command, daemons: Daemons, group: ControlGroup) -> tuple[Cost, Memory]:
    """Run it and look at its memory every 10 ms. `group` is that of this process."""
    others = group.pids()
    program, serving = 0, 0
    with tempfile.TemporaryFile() as said, _Meter(daemons) as meter:
        process = _start(command, said)
        deadline = time.monotonic() + _LONGEST
        try:
            while process.poll() is None and time.monotonic() < deadline:
                program = max(program, resident(group.pids() - others))
                serving = max(serving, sum(resident(each.pids()) for each in daemons or ()))
                time.sleep(_PAUSE)
        except BaseException:
            process.kill()
            process.wait()
            raise
        _wait(process, command, said)
    return meter.cost, Memory(program / _MIB, serving / _MIB)


class _Meter:
    """What a with-block's processes cost."""

    def __init__(self, daemons: Daemons) -> None:
        self._daemons = daemons

    def __enter__(self) -> Self:
        self._served = self._serving()
        self._used = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        wall = time.perf_counter() - self._start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = used.ru_utime + used.ru_stime - self._used.ru_utime - self._used.ru_stime
        served = None if self._daemons is None else self._serving() - self._served
        self.cost = Cost(wall, cpu, served)

    def _serving(self) -> float:
        return sum(daemon.cpu() for daemon in self._daemons or ())


def _start(command: Command, said: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command.arguments,
        env=command.environ,
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=subprocess.STDOUT,
    )


def _wait(process: subprocess.Popen[bytes], command: Command, said: IO[bytes]) -> None:
    try:
        code = process.poll()
        if code is None and has_ended(process.pid, _LONGEST):
            code = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if code != 0:
        said.seek(0)
        text = said.read().decode(errors="replace")[-4000:]
        fate = f"took more than {_LONGEST:.0f} s" if code is None else f"failed ({code})"
        raise SystemExit(f"{' '.join(command.arguments)} {fate}:\n{text}")


def environment(**more: str) -> dict[str, str]:
    """This process's environment but what would slow a Python down, and more."""
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | more
