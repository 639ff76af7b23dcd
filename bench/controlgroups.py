"""Control groups: which processes belong together, whoever their parents are by now.

No controller is used, only the membership, so any cgroup2 that root can write will do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_END_SECONDS = 20.0


class ControlGroup:
    """A group of processes, and of what they start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, pid: int) -> None:
        (self._folder / "cgroup.procs").write_text(str(pid))

    def pids(self) -> set[int]:
        """Those in this group itself, not those in groups below it."""
        return set(map(int, (self._folder / "cgroup.procs").read_text().split()))

    def cpu(self) -> float:
        """Seconds of processor that it took so far, with those that have ended."""
        stat = (self._folder / "cpu.stat").read_text().split()
        return int(stat[stat.index("usage_usec") + 1]) / 1e6

    @contextmanager
    def below(self, name: str) -> Iterator[ControlGroup]:
        """A group in this one; its processes are killed at the end."""
        inner = self._folder / name
        inner.mkdir()
        group = ControlGroup(inner)
        try:
            yield group
        finally:
            group._end()

    def _end(self) -> None:
        (self._folder / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + _END_SECONDS
        while "populated 1" in (self._folder / "cgroup.events").read_text():
            if time.monotonic() > deadline:
                raise SystemExit(f"processes in {self._folder} can't be killed")
            time.sleep(0.01)
        for path, _, _ in os.walk(self._folder, topdown=False):
            Path(path).rmdir()


def resident(pids: set[int]) -> int:
    """Bytes of memory that processes have, what they share counted for each."""
    total = 0
    for pid in pids:
        with suppress(OSError, IndexError):  # one that has just ended
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return total


@contextmanager
def own_group() -> Iterator[ControlGroup]:
    """Move this process into a new group, and end everything else in it afterwards."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    tops = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    if not tops:
        raise SystemExit("the benchmarks need a cgroup2, to know what belongs to a builder")
    home = next(
        tops[0] / line[3:].lstrip("/")
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line.startswith("0::")
    )
    folder = tops[0] / f"bench-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        raise SystemExit(f"the benchmarks need root and a cgroup2 to write: {error}") from None
    group = ControlGroup(folder)
    try:
        group.add(os.getpid())
        yield group
    finally:
        ControlGroup(home).add(os.getpid())
        group._end()  # noqa: SLF001 - of this module


@contextmanager
def parent_of_steps(name: str) -> Iterator[str]:
    """A path for a daemon to keep its containers' groups in; it is gone from every hierarchy."""
    path = f"bench-{os.getpid()}-{name}"
    try:
        yield f"/{path}"
    finally:
        tops = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        for _, top, kind, *_ in tops:
            if kind in {"cgroup", "cgroup2"}:
                for below, _, _ in os.walk(Path(top, path), topdown=False):
                    with suppress(OSError):  # one that is still in use says more than we could
                        Path(below).rmdir()
