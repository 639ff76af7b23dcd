"""Builds many small images through one Builder from several threads, and tells what that took.

``python many_builds.py FOLDER [ADDRESS]`` prints JSON, with ADDRESS for containerd there: what this process had while it made builds of
which none is like another, the first mark behind 50 of them and one each 25 more, and while
it made the last ones again.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from embedding import Stores
from pybuild import Builder, RunFailed
from pybuild.testkit._containerd_cleaner import mounts_below

BUILDS = 300
WARM = 50
BETWEEN = 25
REPEATED = 100
THREADS = 8


def build_one(builder: Builder, number: int) -> None:
    """Two steps that are the build's own, on one that all share; every tenth fails."""
    text = f"FROM busybox\nRUN echo all > /all\nCOPY own /own\nRUN cat /own > /{number}\n"
    if number % 10 == 0:
        text += "RUN echo why > /why; exit 1\n"
    future = builder.submit({"Dockerfile": text, "own": f"{number}\n"})
    error = future.exception()
    if error is not None:
        assert isinstance(error, RunFailed)
        assert error.fs.read_text("/why") == "why\n"
        return
    image = builder.image(future.result())
    assert image.fs.read_text(f"/{number}") == f"{number}\n"
    if number % 25 == 1:
        assert image.run(["cat", f"/{number}"], text=True).stdout == f"{number}\n"


def resident(process: str) -> int:
    """The memory of a process, in KiB; 0 if it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return int(status.partition("VmRSS:")[2].split()[0])


def children() -> list[str]:
    """The processes that this one's threads started."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # the thread has ended
            found += (task / "children").read_text().split()
    return found


def held(folder: Path) -> dict[str, int]:
    """What this process has at the moment."""
    gc.collect()
    # what is free isn't held: each thread of the C library keeps some of its own
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    return {
        "kibibytes": resident("self"),
        "blocks": sys.getallocatedblocks(),
        "kibibytes of others": sum(resident(process) for process in children()),
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - names alone
        "threads": threading.active_count(),
        "mounts": len(mounts_below(folder)),
    }


def main() -> None:
    folder, *address = map(Path, sys.argv[1:])
    backend, options = "embedded", {"root": Stores(folder / "stores").new()}
    if address:
        backend, options = "containerd", {"address": str(address[0]), "cache_dir": folder / "cache"}
    before = held(folder)
    with (
        Builder(backend, backend_options=options, max_builds=THREADS) as builder,
        ThreadPoolExecutor(THREADS) as pool,
    ):

        def mark(first: int, count: int) -> dict[str, int]:
            list(pool.map(lambda each: build_one(builder, first + each), range(count)))
            return held(folder)

        distinct = [mark(0, WARM)]
        distinct += [mark(first, BETWEEN) for first in range(WARM, BUILDS, BETWEEN)]
        repeated = [mark(BUILDS - BETWEEN, BETWEEN) for _ in range(0, REPEATED, BETWEEN)]
    found = {"before": before, "distinct": distinct, "repeated": repeated, "after": held(folder)}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
