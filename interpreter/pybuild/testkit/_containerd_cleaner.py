"""Removes what a private containerd leaves: run by path, as a process of its own.

It waits until its standard input ends, which the test that started it holds open: so it
does its work however that test ends. Only the standard library is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

_WAIT_SECONDS = 10.0


def mounts_below(folder: Path) -> list[str]:
    """Mount points below `folder`, innermost first."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    points = [line.split(" ")[4].replace("\\040", " ") for line in lines]
    return sorted((point for point in points if point.startswith(f"{folder}/")), reverse=True)


def _clean_up(folder: Path) -> None:
    """End every process that belongs to `folder`, undo its mounts, and remove it."""
    daemons = [
        pid for pid, args in _processes() if args[:1] == ["containerd"] and _in(folder, args)
    ]
    _end_processes(daemons)
    shims = [pid for pid, args in _processes() if _in(folder, args)]
    _end_processes([*shims, *_descendants(shims)])
    for bundle in (folder / "state").glob("io.containerd.runtime.v2.task/*/*"):
        with contextlib.suppress(OSError):
            address = (bundle / "address").read_text().strip().removeprefix("unix://")
            Path(address).unlink()
        runc_state = Path("/run/containerd/runc", bundle.parent.name, bundle.name)
        shutil.rmtree(runc_state, ignore_errors=True)
        _remove_cgroups(bundle / "config.json")
    for point in mounts_below(folder):
        subprocess.run(["umount", "--lazy", point], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_cgroups(config: Path) -> None:
    """Remove the control groups of a container by its runtime specification."""
    try:
        path = json.loads(config.read_bytes())["linux"]["cgroupsPath"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    mounted = Path("/sys/fs/cgroup")
    for top in (mounted, *mounted.iterdir()):
        group = Path(f"{top}/{path}")
        if path.strip("/") and ".." not in group.parts:
            # a cgroup has no real files: its folders alone are removed, innermost first
            for below, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(below).rmdir()


def _in(folder: Path, args: Iterable[str]) -> bool:
    return any(arg.startswith(f"{folder}/") for arg in args)


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Process ids and arguments of every process but this one."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                raw = (entry / "cmdline").read_bytes()
                yield int(entry.name), raw.decode(errors="surrogateescape").split("\0")


def _descendants(pids: Iterable[int]) -> list[int]:
    """What the processes `pids` started, and what that started."""
    children: dict[int, list[int]] = {}
    for pid, _ in _processes():
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(pid)
    found: list[int] = []
    waiting = list(pids)
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _end_processes(pids: Iterable[int]) -> None:
    """Kill the processes and wait until they are gone or zombies."""
    pids = list(pids)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _WAIT_SECONDS
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


if __name__ == "__main__":
    sys.stdin.buffer.read()
    _clean_up(Path(sys.argv[1]))
